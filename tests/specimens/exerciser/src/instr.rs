//! Every instruction of this driver that Rust has no word for.
//!
//! An *instruction routine* loads the general registers from an [`Operands`],
//! executes one instruction (or a short run of them), and stores the registers
//! back. [`attempt`] calls one so that a fault in it comes back as a result: the
//! gates of [`vector`] note the fault and return to [`attempt`]'s caller. The
//! notes are static, so there is one attempt at a time in the whole driver
//! (`trap.rs` sees to that), with interrupts off and this driver's IDT loaded.

use core::arch::{asm, global_asm, naked_asm};
use core::cell::UnsafeCell;

/// General registers going in and coming out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operands {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rbx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) flags: u64,
}

/// What the gates note of a fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trap {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
    pub(crate) cr2: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
}

#[repr(C)]
struct Notes {
    trap: Trap,
    resume_rsp: u64,
}

struct Cell(UnsafeCell<Notes>);
// SAFETY: one attempt at a time; the gates run on the processor that makes it.
unsafe impl Sync for Cell {}

static NOTES: Cell = Cell(UnsafeCell::new(Notes {
    trap: Trap {
        vector: 0,
        error: 0,
        rip: 0,
        cs: 0,
        flags: 0,
        rsp: 0,
        ss: 0,
        cr2: 0,
        rax: 0,
        rcx: 0,
        rdx: 0,
    },
    resume_rsp: 0,
}));

/// An instruction routine.
pub(crate) type Routine = unsafe extern "C" fn(*mut Operands);

unsafe extern "C" {
    fn ExerciserVectors();
    fn ExerciserAttempt(routine: Routine, operands: *mut Operands) -> u64;
}

/// Bytes of one gate's code.
const GATE_BYTES: usize = 16;

/// Exceptions that [`attempt`] turns into results.
pub(crate) const VECTORS: usize = 32;

/// Where the gate of `vector` leads.
pub(crate) fn vector(vector: usize) -> u64 {
    (ExerciserVectors as *const () as usize + vector * GATE_BYTES) as u64
}

// 8, 10-14, 17, 21, 29 and 30 come with an error code (Intel SDM vol. 3, 6.15).
global_asm!(
    ".text",
    ".balign 16",
    ".globl ExerciserVectors",
    ".globl ExerciserAttempt",
    "ExerciserVectors:",
    ".set exerciser_vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (exerciser_vector == 8) || ((exerciser_vector >= 10) && (exerciser_vector <= 14)) || (exerciser_vector == 17) || (exerciser_vector == 21) || (exerciser_vector == 29) || (exerciser_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    ".byte 0x6A, exerciser_vector",
    "jmp ExerciserTrap",
    ".set exerciser_vector, exerciser_vector + 1",
    ".endr",
    "ExerciserTrap:",
    "push r8",
    "lea r8, [rip + {notes}]",
    "mov [r8 + 64], rax",
    "mov [r8 + 72], rcx",
    "mov [r8 + 80], rdx",
    "mov rax, cr2",
    "mov [r8 + 56], rax",
    "mov rax, [rsp + 8]",
    "mov [r8], rax",
    "mov rax, [rsp + 16]",
    "mov [r8 + 8], rax",
    "mov rax, [rsp + 24]",
    "mov [r8 + 16], rax",
    "mov rax, [rsp + 32]",
    "mov [r8 + 24], rax",
    "mov rax, [rsp + 40]",
    "mov [r8 + 32], rax",
    "mov rax, [rsp + 48]",
    "mov [r8 + 40], rax",
    "mov rax, [rsp + 56]",
    "mov [r8 + 48], rax",
    // Back to the attempt's end, at ring 0 and with interrupts off.
    "mov rdx, [r8 + 88]",
    "lea rcx, [rip + 2f]",
    "push 0x18",
    "push rdx",
    "push 2",
    "push 0x10",
    "push rcx",
    "iretq",
    "ExerciserAttempt:",
    "push rbx",
    "push rbp",
    "push rdi",
    "push rsi",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 40",
    "lea rax, [rip + {notes}]",
    "mov [rax + 88], rsp",
    "mov rax, rcx",
    "mov rcx, rdx",
    "call rax",
    "xor eax, eax",
    "jmp 3f",
    "2:",
    "mov eax, 1",
    "3:",
    "add rsp, 40",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rsi",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    notes = sym NOTES,
);

/// Calls an instruction routine; what it ran into, if it did.
///
/// # Safety
/// Interrupts are off, this driver's IDT is loaded, nobody else attempts
/// anything, and the routine leaves the processor as it was.
pub(crate) unsafe fn attempt(routine: Routine, operands: &mut Operands) -> Option<Trap> {
    // SAFETY: forwarded to the caller.
    let trapped = unsafe { ExerciserAttempt(routine, operands) };
    if trapped == 0 {
        return None;
    }
    // SAFETY: the gates have written it, and no other attempt is under way.
    Some(unsafe { NOTES.0.get().cast::<Trap>().read_volatile() })
}

macro_rules! routines {
    ($($name:ident: $($text:literal),+;)*) => { $(
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name(_operands: *mut Operands) {
            naked_asm!(
                "push rbx",
                "push rsi",
                "push rdi",
                "mov r11, rcx",
                "mov rax, [r11]",
                "mov rcx, [r11 + 8]",
                "mov rdx, [r11 + 16]",
                "mov rbx, [r11 + 24]",
                "mov rsi, [r11 + 32]",
                "mov rdi, [r11 + 40]",
                "xor r10d, r10d",
                $($text,)+
                "mov [r11], rax",
                "mov [r11 + 8], rcx",
                "mov [r11 + 16], rdx",
                "mov [r11 + 24], rbx",
                "mov [r11 + 32], rsi",
                "mov [r11 + 40], rdi",
                "pushfq",
                "pop r10",
                "mov [r11 + 48], r10",
                "pop rdi",
                "pop rsi",
                "pop rbx",
                "ret",
            )
        }
    )* };
}

routines! {
    rdmsr: "rdmsr";
    wrmsr: "wrmsr";
    cpuid: "cpuid";
    xgetbv: "xgetbv";
    xsetbv: "xsetbv";
    rdtsc: "rdtsc";
    rdtscp: "rdtscp";
    rdpmc: "rdpmc";
    rdrand: "rdrand rax";
    rdseed: "rdseed rax";
    rdpid: ".byte 0xF3, 0x48, 0x0F, 0xC7, 0xF8";
    pause: "pause";
    wbinvd: "wbinvd";
    invd: "invd";
    invlpg: "invlpg [rax]";
    invpcid: "invpcid rax, [rdx]";
    clts: "clts";
    lmsw: "lmsw ax";
    smsw: "smsw rax";
    monitor: "monitor";
    getsec: ".byte 0x0F, 0x37";
    rsm: ".byte 0x0F, 0xAA";
    vmcall: "vmcall";
    vmxon: "vmxon [rdx]";
    vmxoff: "vmxoff";
    vmclear: "vmclear [rdx]";
    vmptrld: "vmptrld [rdx]";
    vmptrst: "vmptrst [rdx]";
    vmread: "vmread rax, rcx";
    vmwrite: "vmwrite rax, rcx";
    vmlaunch: "vmlaunch";
    vmresume: "vmresume";
    vmfunc: "vmfunc";
    invept: "invept rax, [rdx]";
    invvpid: "invvpid rax, [rdx]";
    vmrun: ".byte 0x0F, 0x01, 0xD8";
    vmmcall: ".byte 0x0F, 0x01, 0xD9";
    vmload: ".byte 0x0F, 0x01, 0xDA";
    vmsave: ".byte 0x0F, 0x01, 0xDB";
    stgi: ".byte 0x0F, 0x01, 0xDC";
    clgi: ".byte 0x0F, 0x01, 0xDD";
    skinit: ".byte 0x0F, 0x01, 0xDE";
    invlpga: ".byte 0x0F, 0x01, 0xDF";
    encls: ".byte 0x0F, 0x01, 0xCF";
    pconfig: ".byte 0x0F, 0x01, 0xC5";
    tpause: ".byte 0x66, 0x0F, 0xAE, 0xF2";
    umonitor: ".byte 0xF3, 0x0F, 0xAE, 0xF2";
    xsaves: "xsaves [rdi]";
    xrstors: "xrstors [rdi]";
    ud2: "ud2";
    int3: "int3";
    icebp: ".byte 0xF1";
    int_n: "int 0x10";
    load: "mov rax, [rdx]";
    store: "mov [rdx], rax";
    // What CR0 reads as while the value is in it, then what it was.
    flip_cr0: "mov rdx, cr0", "mov cr0, rax", "mov rcx, cr0", "mov cr0, rdx";
    flip_cr4: "mov rdx, cr4", "mov cr4, rax", "mov rcx, cr4", "mov cr4, rdx";
    write_cr3: "mov cr3, rax";
    // VMXON between setting and clearing CR4.VMXE.
    vmxon_enabled: "mov rsi, cr4", "mov cr4, rax", "vmxon [rdx]", "pushfq", "pop rcx", "mov cr4, rsi";
    // To ring 3 at RAX with the stack at RDX and the tables at RCX; comes back by a
    // fault. Selectors as in 64-bit Windows.
    enter_user: "mov cr3, rcx", "invlpg [rax]", "push 0x2B", "push rdx", "push 2", "push 0x33", "push rax", "iretq";
    write_cr8: "mov rdx, cr8", "mov cr8, rax", "mov rcx, cr8", "mov cr8, rdx";
    write_dr7: "mov rdx, dr7", "mov dr7, rax", "mov rcx, dr7", "mov dr7, rdx";
    write_dr6: "mov rdx, dr6", "mov dr6, rax", "mov rcx, dr6", "mov dr6, rdx";
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident, $register:literal;)*) => { $(
        $(#[$doc])*
        pub(crate) fn $name() -> u64 {
            let value;
            // SAFETY: a ring-0 driver may read it.
            unsafe {
                asm!(concat!("mov {}, ", $register), out(reg) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }
    )* };
}

reads! {
    /// CR0.
    cr0, "cr0";
    /// CR3.
    cr3, "cr3";
    /// CR4.
    cr4, "cr4";
}

/// As in the other specimens' `instr.rs`.
///
/// # Safety
/// As there.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn call_with_root(
    root: u64,
    address: u64,
    routine: unsafe extern "C" fn(u64) -> u64,
    argument: u64,
) -> u64 {
    naked_asm!(
        "push rbx",
        "push rsi",
        "pushfq",
        "sub rsp, 32",
        "cli",
        "mov rbx, cr3",
        "mov rsi, rdx",
        "mov cr3, rcx",
        "invlpg [rdx]",
        "mov rcx, r9",
        "call r8",
        "mov cr3, rbx",
        "invlpg [rsi]",
        "add rsp, 32",
        "popfq",
        "pop rsi",
        "pop rbx",
        "ret",
    )
}

/// Loads CR3.
///
/// # Safety
/// The tables map whatever is used until others are loaded.
pub(crate) unsafe fn load_cr3(root: u64) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Interrupts off; whether they were on.
pub(crate) fn interrupts_off() -> bool {
    let flags: u64;
    // SAFETY: ring 0; the caller turns them on again.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags & 1 << 9 != 0
}

/// Interrupts on.
///
/// # Safety
/// They were on before [`interrupts_off`], and nothing needs them off.
pub(crate) unsafe fn interrupts_on() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("sti") };
}

/// A descriptor-table register: limit, then base.
pub(crate) type TableRegister = [u16; 5];

/// IDTR.
pub(crate) fn idt() -> TableRegister {
    let mut image = [0; 5];
    // SAFETY: ten bytes that are ours.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut image, options(nostack, preserves_flags)) };
    image
}

/// Loads IDTR.
///
/// # Safety
/// The table must serve whatever can happen until the old one is back.
pub(crate) unsafe fn load_idt(image: &TableRegister) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("lidt [{}]", in(reg) image, options(readonly, nostack, preserves_flags)) };
}

/// GDTR.
pub(crate) fn gdt() -> TableRegister {
    let mut image = [0; 5];
    // SAFETY: ten bytes that are ours.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut image, options(nostack, preserves_flags)) };
    image
}

/// Loads GDTR.
///
/// # Safety
/// The selectors in use must mean the same in the table.
pub(crate) unsafe fn load_gdt(image: &TableRegister) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("lgdt [{}]", in(reg) image, options(readonly, nostack, preserves_flags)) };
}

/// Loads the task register.
///
/// # Safety
/// The selector names an available TSS that serves until another is loaded.
pub(crate) unsafe fn load_task(selector: u16) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Loads the local descriptor table's register.
///
/// # Safety
/// The selector is null or names an LDT that serves until another is loaded.
pub(crate) unsafe fn load_local_table(selector: u16) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Loads FS, which changes its base.
///
/// # Safety
/// The selector is null or names a data segment; nobody uses FS before it is back.
pub(crate) unsafe fn load_fs(selector: u16) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("mov fs, {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

macro_rules! selectors {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal;)*) => { $(
        $(#[$doc])*
        pub(crate) fn $name() -> u16 {
            let selector: u64;
            // SAFETY: a ring-0 driver may read it.
            unsafe {
                asm!($instruction, out(reg) selector, options(nomem, nostack, preserves_flags));
            }
            (selector & 0xFFFF) as u16
        }
    )* };
}

selectors! {
    /// The selector of TR.
    task_register, "str {}";
    /// The selector of LDTR.
    local_table, "sldt {}";
    /// The selector of FS.
    fs, "mov {}, fs";
    /// The selector of GS.
    gs, "mov {}, gs";
}

/// Sets CR8; what it was.
pub(crate) fn set_cr8(level: u64) -> u64 {
    let before;
    // SAFETY: the caller puts it back before it returns to the kernel.
    unsafe {
        asm!("mov {}, cr8", "mov cr8, {}", out(reg) before, in(reg) level,
            options(nomem, nostack, preserves_flags));
    }
    before
}

/// DR6.
pub(crate) fn dr6() -> u64 {
    let value;
    // SAFETY: ring 0; general detection is off.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// DR7.
pub(crate) fn dr7() -> u64 {
    let value;
    // SAFETY: ring 0; general detection is off.
    unsafe { asm!("mov {}, dr7", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets DR7.
pub(crate) fn set_dr7(value: u64) {
    // SAFETY: the caller enables no breakpoint.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR0 to DR3.
pub(crate) fn dr0_to_3() -> [u64; 4] {
    let (zero, one, two, three);
    // SAFETY: ring 0; general detection is off.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) zero, out(reg) one, out(reg) two, out(reg) three,
            options(nomem, nostack, preserves_flags));
    }
    [zero, one, two, three]
}

/// Sets DR0 to DR3.
pub(crate) fn set_dr0_to_3([zero, one, two, three]: [u64; 4]) {
    // SAFETY: no breakpoint is enabled.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) zero, in(reg) one, in(reg) two, in(reg) three,
            options(nomem, nostack, preserves_flags));
    }
}

/// Whether the kernel has AVX in use (XCR0).
pub(crate) fn has_avx() -> bool {
    if cr4() & 1 << 18 == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: CR4.OSXSAVE is set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _,
            options(nomem, nostack, preserves_flags));
    }
    low & 6 == 6
}

/// Sets DR6.
pub(crate) fn set_dr6(value: u64) {
    // SAFETY: a status register.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// RDMSR.
///
/// # Safety
/// The register exists.
pub(crate) unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The register takes the value, and nobody minds.
pub(crate) unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = ((value & 0xFFFF_FFFF) as u32, (value >> 32) as u32);
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high,
            options(nostack, preserves_flags));
    }
}

/// Ends the machine: no IDT, then an exception.
pub(crate) fn triple_fault() -> ! {
    let none: TableRegister = [0; 5];
    // SAFETY: on purpose, on the lab's request.
    unsafe { asm!("cli", "lidt [{}]", "ud2", in(reg) &raw const none, options(noreturn)) };
}

/// Tells the lab's machine in which frame foreign code is about to run: two
/// writes to a port that no hardware has. Elsewhere nothing happens.
#[cfg(feature = "lab-port")]
pub(crate) fn tell_lab(frame: u64) {
    const PORT: u16 = 0xE7;
    let low = (frame & 0xFFFF_FFFF) as u32;
    let high = (frame >> 32) as u32;
    for half in [low, high] {
        // SAFETY: the port belongs to the lab or to nobody.
        unsafe {
            asm!("out dx, eax", in("dx") PORT, in("eax") half,
                options(nomem, nostack, preserves_flags));
        }
    }
}
