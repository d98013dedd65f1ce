//! Events, what their handlers note, and the few instructions that cause them.
//!
//! The handlers are copied into a page of the arena (`delivery.rs`); they note the
//! frame in [`Record`], of which there is one, and return behind a fault. An
//! event's routine switches to the arena's stack, causes the event there and comes
//! back. All assembly of this file runs with interrupts off but for the moment in
//! which an interrupt is taken.

use core::arch::{global_asm, naked_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::apic::Apic;

/// What the handlers note, and what the routines tell them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    count: u64,
    /// Where a fault's handler returns to; 0 after traps and interrupts.
    resume: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
    cr2: u64,
    dr6: u64,
    /// The instruction that causes the event.
    label: u64,
    /// RSP at that instruction.
    stack: u64,
    /// The routine's end.
    end: u64,
    /// For an NMI's handler that is to be interrupted by the next NMI: where to
    /// write [`Self::value`] for it, or 0; used once.
    again: u64,
    value: u64,
    /// A RET that the handler calls after that.
    stub: u64,
}

struct Cell(UnsafeCell<Record>);
// SAFETY: one event at a time, on the processor that causes it.
unsafe impl Sync for Cell {}

static RECORD: Cell = Cell(UnsafeCell::new(Record {
    count: 0,
    resume: 0,
    vector: 0,
    error: 0,
    rip: 0,
    cs: 0,
    flags: 0,
    rsp: 0,
    ss: 0,
    cr2: 0,
    dr6: 0,
    label: 0,
    stack: 0,
    end: 0,
    again: 0,
    value: 0,
    stub: 0,
}));

/// Where an event comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An instruction of the routine.
    Instruction,
    /// An interrupt that waits when the routine begins.
    Interrupt,
    /// An NMI that the routine sends to its own processor.
    Nmi,
    /// The same; its handler sends another and returns to [`FRESH_CODE`].
    NmiTwice,
}

/// A selector of ring 0's code whose descriptor was never used.
pub(crate) const FRESH_CODE: u16 = 0xE0;

type Routine = unsafe extern "C" fn(u64, *mut Record, *mut u32, u32);

/// An event.
pub(crate) struct Event {
    pub(crate) name: &'static str,
    pub(crate) vector: u8,
    pub(crate) kind: Kind,
    routine: Routine,
}

/// Vector of the interrupt: above all that the kernel uses.
const INTERRUPT: u8 = 0xF5;
/// Vector of INT n.
const SOFTWARE: u8 = 0x80;

unsafe extern "C" {
    static DeliveryHandlers: u8;
    static DeliveryHandlersEnd: u8;
}

/// The handlers' code, for a page.
pub(crate) fn handlers() -> &'static [u8] {
    let start = &raw const DeliveryHandlers;
    let bytes = (&raw const DeliveryHandlersEnd) as usize - start as usize;
    // SAFETY: both labels stand in this image's read-only data, in this order.
    unsafe { core::slice::from_raw_parts(start, bytes) }
}

/// Offset of a vector's handler.
pub(crate) fn gate(vector: u8) -> u64 {
    let number = match vector {
        INTERRUPT => 32,
        SOFTWARE => 33,
        exception => u64::from(exception),
    };
    number * 16
}

global_asm!(
    ".section .rdata, \"dr\"",
    ".balign 16",
    ".globl DeliveryHandlers",
    ".globl DeliveryHandlersEnd",
    "DeliveryHandlers:",
    ".set delivery_vector, 0",
    ".rept 34",
    ".balign 16",
    ".if (delivery_vector == 8) || ((delivery_vector >= 10) && (delivery_vector <= 14)) || (delivery_vector == 17) || (delivery_vector == 21) || (delivery_vector == 29) || (delivery_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    ".byte 0x6A, delivery_vector",
    "jmp DeliveryNote",
    ".set delivery_vector, delivery_vector + 1",
    ".endr",
    "DeliveryNote:",
    "push rax",
    "push rcx",
    "mov rax, [rip + DeliveryRecord]",
    "inc qword ptr [rax]",
    "mov rcx, [rsp + 16]",
    "mov [rax + 16], rcx",
    "mov rcx, [rsp + 24]",
    "mov [rax + 24], rcx",
    "mov rcx, [rsp + 32]",
    "mov [rax + 32], rcx",
    "mov rcx, [rsp + 40]",
    "mov [rax + 40], rcx",
    "mov rcx, [rsp + 48]",
    "mov [rax + 48], rcx",
    "mov rcx, [rsp + 56]",
    "mov [rax + 56], rcx",
    "mov rcx, [rsp + 64]",
    "mov [rax + 64], rcx",
    "mov rcx, cr2",
    "mov [rax + 72], rcx",
    "mov rcx, dr6",
    "mov [rax + 80], rcx",
    "mov rcx, [rax + 8]",
    "test rcx, rcx",
    "jz 2f",
    "mov [rsp + 32], rcx",
    "2:",
    "and qword ptr [rsp + 48], -257", // without TF
    "mov rcx, [rax + 112]",
    "test rcx, rcx",
    "jz 3f",
    "mov qword ptr [rax + 112], 0",
    "push rdx",
    "mov edx, [rax + 120]",
    "mov [rcx], edx",
    "pop rdx",
    "mov qword ptr [rsp + 40], {fresh}",
    "call [rax + 128]",
    "3:",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".balign 8",
    "DeliveryRecord:",
    ".quad {record}",
    "DeliveryHandlersEnd:",
    ".text",
    record = sym RECORD,
    fresh = const FRESH_CODE,
);

macro_rules! events {
    ($($routine:ident, $name:literal, $vector:expr, $kind:ident, $resume:literal:
        [$($before:literal),*], [$($event:literal),+];)*) => {
        $(
            #[unsafe(naked)]
            unsafe extern "C" fn $routine(
                _stack: u64,
                _record: *mut Record,
                _command: *mut u32,
                _value: u32,
            ) {
                naked_asm!(
                    "push rbx",
                    "push rsi",
                    "push rdi",
                    "mov rsi, rsp",
                    "mov rdi, rdx",
                    "mov [rdi + 96], rcx",
                    "lea rax, [rip + 3f]",
                    "mov [rdi + 88], rax",
                    "lea rax, [rip + 4f]",
                    "mov [rdi + 104], rax",
                    $resume,
                    "mov [rdi + 8], rax",
                    "xor eax, eax",
                    "mov cr2, rax",
                    $($before,)*
                    // The stack holds flags with TF below its top: reading them
                    // does not change the page's state.
                    "mov rsp, rcx",
                    "3:",
                    $($event,)+
                    "4:",
                    "mov rsp, rsi",
                    "pop rdi",
                    "pop rsi",
                    "pop rbx",
                    "ret",
                )
            }
        )*

        /// Every event.
        pub(crate) static EVENTS: &[Event] = &[
            $(Event {
                name: $name,
                vector: $vector,
                kind: Kind::$kind,
                routine: $routine,
            },)*
        ];
    };
}

// The third part: where the handler returns to ("xor" for the frame's own RIP).
events! {
    // First, while pages still turn at each write.
    nmi_twice, "NMI while an NMI's handler returns", 2, NmiTwice, "xor eax, eax":
        [], ["mov [r8], r9d", "mov eax, 100000", "5: cmp qword ptr [rdi], 1", "ja 6f",
            "dec eax", "jnz 5b", "6: push 0x10", "lea rax, [rip + 7f]", "push rax",
            ".byte 0x48, 0xCB", "7: nop"];
    interrupt, "external interrupt", INTERRUPT, Interrupt, "xor eax, eax":
        [], ["sti", "nop", "nop", "nop", "nop", "cli"];
    interrupt_cpuid, "external interrupt after STI and CPUID", INTERRUPT, Interrupt, "xor eax, eax":
        [], ["xor eax, eax", "xor ecx, ecx", "sti", "cpuid", "nop", "nop", "nop", "cli"];
    nmi, "NMI", 2, Nmi, "xor eax, eax":
        [], ["mov [r8], r9d", "mov eax, 100000", "5: cmp qword ptr [rdi], 0", "jne 6f",
            "dec eax", "jnz 5b", "6: nop"];
    interrupt_rdmsr, "external interrupt after STI and RDMSR", INTERRUPT, Interrupt, "xor eax, eax":
        [], ["mov ecx, r9d", "sti", "rdmsr", "nop", "nop", "nop", "cli"];
    int_n, "INT n", SOFTWARE, Instruction, "xor eax, eax": [], ["int 0x80"];
    int3, "INT3", 3, Instruction, "xor eax, eax": [], ["int3"];
    int1, "INT1", 1, Instruction, "xor eax, eax": [], [".byte 0xF1"];
    page_fault, "#PF by a read", 14, Instruction, "": ["mov eax, 8"], ["mov rax, [rax]"];
    page_fault_write, "#PF by a write", 14, Instruction, "":
        ["mov eax, 24"], ["mov [rax], rax"];
    protection, "#GP with a selector", 13, Instruction, "":
        ["mov eax, 0x7F8"], ["mov es, eax"];
    protection_zero, "#GP of an address", 13, Instruction, "":
        ["movabs rax, 0x123456789ABCDEF0"], ["mov rax, [rax]"];
    protection_msr, "#GP of an MSR that exits", 13, Instruction, "":
        [], ["mov ecx, 0x12345678", "rdmsr"];
    single_step, "#DB by single step", 1, Instruction, "xor eax, eax":
        ["sub rcx, 8"], ["popfq", "nop", "nop"];
    single_step_cpuid, "#DB by single step of CPUID", 1, Instruction, "xor eax, eax":
        ["sub rcx, 8"], ["xor eax, eax", "popfq", "cpuid", "nop"];
    single_step_rdmsr, "#DB by single step of RDMSR", 1, Instruction, "xor eax, eax":
        ["sub rcx, 8"], ["mov ecx, r9d", "popfq", "rdmsr", "nop"];
    undefined, "#UD", 6, Instruction, "": [], ["ud2"];
    undefined_vmcall, "#UD of VMCALL", 6, Instruction, "": [], ["vmcall"];
}

/// Forgets the last event.
pub(crate) fn clear() {
    // SAFETY: no event is under way.
    unsafe { RECORD.0.get().write_volatile(Record::default()) };
    crate::instr::set_dr6(0xFFFF_0FF0);
}

/// A register that every processor of the vendor has and whose reading exits:
/// `IA32_FEATURE_CONTROL` on Intel's, EFER on AMD's.
fn exiting_msr() -> u32 {
    const INTEL: u32 = u32::from_le_bytes(*b"Genu");
    static MSR: AtomicU32 = AtomicU32::new(0);
    // Asked for once, by the first event: CPUID exits, too.
    if MSR.load(Ordering::Relaxed) == 0 {
        let intel = core::arch::x86_64::__cpuid(0).ebx == INTEL;
        let register = if intel { 0x3A } else { 0xC000_0080 };
        MSR.store(register, Ordering::Relaxed);
    }
    MSR.load(Ordering::Relaxed)
}

/// Causes an event on the stack that ends at `top`. At `stub` lies a RET.
pub(crate) fn run(event: &Event, top: u64, stub: u64, send: Option<&Apic>) -> Record {
    let (command, value) = send.map_or((core::ptr::null_mut(), exiting_msr()), Apic::nmi_to_self);
    if event.kind == Kind::NmiTwice {
        let record = Record {
            again: command as u64,
            value: value.into(),
            stub,
            ..Record::default()
        };
        // SAFETY: no event is under way.
        unsafe { RECORD.0.get().write_volatile(record) };
    }
    // SAFETY: the arena's tables are loaded, and its stack is there.
    unsafe { (event.routine)(top, RECORD.0.get(), command, value) };
    // SAFETY: the event is over.
    unsafe { RECORD.0.get().read_volatile() }
}

impl Record {
    /// Whether the frame is what the manual says, as far as it does not depend on
    /// the event.
    pub(crate) fn right(&self, event: &Event) -> bool {
        let vector = match event.vector {
            INTERRUPT => 32,
            SOFTWARE => 33,
            exception => u64::from(exception),
        };
        let (count, code) = match event.kind {
            Kind::NmiTwice => (2, FRESH_CODE.into()),
            _ => (1, 0x10),
        };
        self.count == count
            && self.vector == vector
            && (self.label..=self.end).contains(&self.rip)
            && self.cs == code
            && self.rsp == self.stack
    }

    /// For the answer: nothing that differs from run to run.
    pub(crate) fn describe(&self, event: &Event) -> Description<'_> {
        Description {
            record: self,
            right: self.right(event),
            exact: matches!(event.kind, Kind::Instruction | Kind::Interrupt),
        }
    }
}

/// A record as words.
pub(crate) struct Description<'a> {
    record: &'a Record,
    right: bool,
    /// RIP and RSP do not depend on the moment.
    exact: bool,
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.record;
        write!(
            f,
            "{} times, {}, vector {}, error {:#x}, cs {:#x}, flags {:#x}, rsp {:+}, ss {:#x}, cr2 {:#x}, dr6 {:#x}",
            r.count,
            if self.right { "right" } else { "WRONG" },
            r.vector,
            r.error,
            r.cs,
            r.flags,
            r.rsp.wrapping_sub(r.stack).cast_signed(),
            r.ss,
            r.cr2,
            r.dr6
        )?;
        if self.exact {
            write!(f, ", at {:+}", r.rip.wrapping_sub(r.label).cast_signed())?;
        }
        Ok(())
    }
}
