//! Registers that VMRUN and #VMEXIT leave alone, so that a hypervisor moves them
//! itself with VMLOAD and VMSAVE or must not touch them: FS, GS and their bases,
//! `KERNEL_GS_BASE`, TR, LDTR, STAR, LSTAR, CSTAR, SFMASK, `SYSENTER_CS`, ESP and EIP
//! (AMD64 APM volume 2, "VMSAVE and VMLOAD Instructions").
//!
//! A run loads patterns with interrupts off, causes exits and reads what is there
//! then. Exits are RDMSR of EFER, VMMCALL (which ends in #UD, with and without a
//! hypervisor), and a page that turns between data and code. Hidden parts are read
//! by what they do: that of TR by the stack on which each #UD arrives, that of LDTR by
//! the base that a load of FS takes from it. Everything is put back before interrupts
//! are on. NMIs keep the kernel's handler, which needs GS: none may be sent meanwhile.

use core::cell::UnsafeCell;

use crate::harness::CodePages;
use crate::instr::{self, Operands};
use crate::line;
use crate::text::Text;
use crate::trap::{self, guarded_on};

const EFER: u32 = 0xC000_0080;
const FS_BASE: u32 = 0xC000_0100;
const UNDEFINED: u64 = 6;
/// Slot of the interrupt-stack table that is ours in our own TSS.
const SLOT: u64 = 1;
/// Bytes of a 64-bit TSS without an I/O map.
const TSS_BYTES: usize = 104;
/// Most descriptors of the kernel's GDT.
const KERNELS: usize = 32;
/// Words of the stack of that slot.
const STACK_WORDS: usize = 128;
/// Entry 1 of the LDT, ring 0.
const LOCAL: u16 = 0x0C;

/// A register and how much of it holds a pattern.
struct Register {
    name: &'static str,
    number: u32,
    mask: u64,
}

const fn register(name: &'static str, number: u32, mask: u64) -> Register {
    Register { name, number, mask }
}

/// Canonical in every mode of addressing.
const ADDRESS: u64 = 0x0000_7FFF_FFFF_FFFF;

/// AMD's processors keep 32 bits of the SYSENTER addresses and 16 of the selector.
const REGISTERS: [Register; 10] = [
    register("FS_BASE", FS_BASE, ADDRESS),
    register("GS_BASE", 0xC000_0101, ADDRESS),
    register("KERNEL_GS_BASE", 0xC000_0102, ADDRESS),
    register("STAR", 0xC000_0081, !0),
    register("LSTAR", 0xC000_0082, ADDRESS),
    register("CSTAR", 0xC000_0083, ADDRESS),
    register("SFMASK", 0xC000_0084, 0xFFFF_FFFF),
    register("SYSENTER_CS", 0x174, 0xFFF8),
    register("SYSENTER_ESP", 0x175, 0xFFFF_FFFF),
    register("SYSENTER_EIP", 0x176, 0xFFFF_FFFF),
];

type Values = [u64; REGISTERS.len()];

#[repr(C, align(4096))]
struct Space {
    // First: its end is to be a multiple of 16, to which the processor aligns.
    stack: [u64; STACK_WORDS],
    gdt: [u64; KERNELS + 4],
    ldt: [u64; 2],
    tss: [u8; TSS_BYTES],
}

const _: () = assert!((core::mem::offset_of!(Space, stack) + STACK_WORDS * 8).is_multiple_of(16));

struct Cell(UnsafeCell<Space>);
// SAFETY: one command at a time, with interrupts off.
unsafe impl Sync for Cell {}

static SPACE: Cell = Cell(UnsafeCell::new(Space {
    stack: [0; STACK_WORDS],
    gdt: [0; KERNELS + 4],
    ldt: [0; 2],
    tss: [0; TSS_BYTES],
}));

fn values() -> Values {
    REGISTERS.map(|register| {
        // SAFETY: every x86-64 processor has them all.
        unsafe { instr::read_msr(register.number) }
    })
}

fn put(values: &Values) {
    for (register, &value) in REGISTERS.iter().zip(values) {
        // SAFETY: interrupts are off, and this driver uses neither FS nor GS nor
        // system calls before the old values are back.
        unsafe { instr::write_msr(register.number, value) };
    }
}

/// A system descriptor of 64-bit mode.
fn system_descriptor(base: u64, limit: u64, kind: u64) -> [u64; 2] {
    let low = limit | (base & 0xFF_FFFF) << 16 | (0x80 | kind) << 40 | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

/// Base in the TSS descriptor that `selector` names.
fn task_base(gdt: u64, selector: u16) -> u64 {
    let at = (gdt + u64::from(selector & !7)) as *const [u64; 2];
    // SAFETY: TR was loaded from there.
    let [low, high] = unsafe { at.read_unaligned() };
    low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32
}

/// What the kernel has, and where.
struct Kernel {
    gdt: instr::TableRegister,
    task: u16,
    local: u16,
    fs: u16,
    gs: u16,
    values: Values,
}

impl Kernel {
    fn now() -> Self {
        Self {
            gdt: instr::gdt(),
            task: instr::task_register(),
            local: instr::local_table(),
            fs: instr::fs(),
            gs: instr::gs(),
            values: values(),
        }
    }

    /// Loads our GDT, TSS, LDT and FS; the selectors of TSS and LDT.
    fn replace(&self, base: u64) -> [u16; 2] {
        let space = SPACE.0.get();
        // SAFETY: one command at a time, with interrupts off.
        let ours = unsafe { &mut *space };
        let bytes = usize::from(self.gdt[0]) + 1;
        let kernels = (bytes / 8).min(KERNELS);
        let gdt = trap::base(&self.gdt);
        // SAFETY: the kernel's GDT, as long as its limit says.
        let from = unsafe { core::slice::from_raw_parts(gdt as *const u64, kernels) };
        ours.gdt[..kernels].copy_from_slice(from);
        // SAFETY: the kernel's TSS.
        let task = unsafe {
            core::slice::from_raw_parts(task_base(gdt, self.task) as *const u8, TSS_BYTES)
        };
        ours.tss.copy_from_slice(task);
        let top = ours.stack.as_ptr_range().end as u64;
        // Slot 1 of the interrupt-stack table lies at 0x24.
        ours.tss[0x24..0x2C].copy_from_slice(&top.to_le_bytes());
        // A writable data segment; its base is what a load of FS takes.
        let data = 0x00CF_9300_0000_FFFF;
        ours.ldt[1] = data | (base & 0xFF_FFFF) << 16 | (base >> 24 & 0xFF) << 56;
        let local = system_descriptor(ours.ldt.as_ptr() as u64, 15, 2);
        let task = system_descriptor(ours.tss.as_ptr() as u64, TSS_BYTES as u64 - 1, 9);
        ours.gdt[kernels..kernels + 2].copy_from_slice(&local);
        ours.gdt[kernels + 2..kernels + 4].copy_from_slice(&task);
        let place = |entry: usize| u16::try_from(entry * 8).unwrap_or(0);
        let register = trap::register(ours.gdt.as_ptr() as u64, place(kernels + 4) - 1);
        let selectors = [place(kernels), place(kernels + 2)];
        // SAFETY: the kernel's descriptors at their places, and ours behind them.
        unsafe { instr::load_gdt(&register) };
        // SAFETY: one of ours.
        unsafe { instr::load_local_table(selectors[0]) };
        // SAFETY: ours, available, with the kernel's stacks but for one slot.
        unsafe { instr::load_task(selectors[1]) };
        // SAFETY: a data segment of our LDT; nobody uses FS.
        unsafe { instr::load_fs(LOCAL) };
        selectors
    }

    fn restore(&self) {
        let gdt = trap::base(&self.gdt);
        // SAFETY: the kernel's own.
        unsafe { instr::load_gdt(&self.gdt) };
        let kind = (gdt + u64::from(self.task & !7) + 5) as *mut u8;
        // SAFETY: within the kernel's GDT.
        let busy = unsafe { kind.read_volatile() };
        // SAFETY: as above; LTR wants an available TSS.
        unsafe { kind.write_volatile(busy & !2) };
        // SAFETY: the kernel's TSS, available now.
        unsafe { instr::load_task(self.task) };
        // SAFETY: the kernel's.
        unsafe { instr::load_local_table(self.local) };
        // SAFETY: the kernel's; the base follows.
        unsafe { instr::load_fs(self.fs) };
        put(&self.values);
    }
}

/// What went wrong in a run.
#[derive(Default)]
struct Wrong {
    /// VMMCALL ended otherwise than in #UD, or on another stack.
    traps: u64,
    /// Values before and after, where they differ.
    values: Option<(Values, Values)>,
    /// Selectors of TR, LDTR, FS and GS have changed.
    selectors: bool,
    /// FS took another base from the LDT.
    local_base: Option<u64>,
}

/// VMMCALL, whose #UD must come on the stack of our TSS.
fn call_monitor() -> bool {
    let space = SPACE.0.get();
    // SAFETY: one command at a time; nothing runs on that stack now.
    let frame = unsafe { &raw mut (*space).stack };
    // RIP is the lowest of the five words that are pushed.
    let place = frame.cast::<u64>().wrapping_add(STACK_WORDS - 5);
    // SAFETY: within the stack.
    unsafe { place.write_volatile(0) };
    let mut operands = Operands::default();
    // SAFETY: guarded by the caller.
    let trap = unsafe { instr::attempt(instr::vmmcall, &mut operands) };
    // SAFETY: within the stack.
    let pushed = unsafe { place.read_volatile() };
    trap.is_some_and(|trap| trap.vector == UNDEFINED && trap.rip == pushed)
}

fn once(seed: u64, turns: u64, code: Option<u64>) -> Wrong {
    let local_base = seed >> 3 & 0xFFFF_F000;
    let mut pattern = Values::default();
    let mut state = seed;
    for (value, register) in pattern.iter_mut().zip(&REGISTERS) {
        state = state.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ seed;
        *value = state & register.mask;
    }
    guarded_on(SLOT, || {
        let kernel = Kernel::now();
        let [local, task] = kernel.replace(local_base);
        put(&pattern);
        let mut wrong = Wrong::default();
        for _ in 0..turns {
            // SAFETY: every x86-64 processor has it.
            core::hint::black_box(unsafe { instr::read_msr(EFER) });
            wrong.traps += u64::from(!call_monitor());
            if let Some(code) = code {
                // SAFETY: our page; the byte is behind its only instruction.
                unsafe { ((code + 64) as *mut u8).write_volatile(0x5A) };
                // SAFETY: a RET lies there.
                let routine = unsafe { core::mem::transmute::<u64, unsafe extern "C" fn()>(code) };
                // SAFETY: it returns at once.
                unsafe { routine() };
            }
        }
        let after = values();
        if after != pattern {
            wrong.values = Some((pattern, after));
        }
        let selectors = [
            instr::task_register(),
            instr::local_table(),
            instr::fs(),
            instr::gs(),
        ];
        wrong.selectors = selectors != [task, local, LOCAL, kernel.gs];
        // SAFETY: as in `replace`.
        unsafe { instr::load_fs(LOCAL) };
        // SAFETY: it exists.
        let base = unsafe { instr::read_msr(FS_BASE) };
        wrong.local_base = (base != local_base).then_some(base);
        kernel.restore();
        wrong
    })
}

/// `exits` rounds in all, in runs of 500.
pub(crate) fn all(text: &mut Text<'_>, exits: u64) {
    const RUN: u64 = 500;
    let Some(mut page) = CodePages::allocate(1) else {
        line!(text, "no memory");
        return;
    };
    if !page.write(0, &[0xC3]) {
        return;
    }
    let mut bad = 0;
    for run in 0..exits.div_ceil(RUN).max(1) {
        let seed = (run + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
        // Every fourth run turns the page as well.
        let code = run.is_multiple_of(4).then(|| page.address());
        let wrong = once(seed, RUN, code);
        bad += u64::from(tell(text, &wrong));
        if bad > 8 {
            break;
        }
    }
    line!(text, "{bad} runs with a register that had changed");
}

/// One line for each thing that is wrong; whether there was any.
fn tell(text: &mut Text<'_>, wrong: &Wrong) -> bool {
    if wrong.traps != 0 {
        line!(
            text,
            "{} VMMCALL without #UD on the stack of TR",
            wrong.traps
        );
    }
    if let Some((before, after)) = &wrong.values {
        for (register, (before, after)) in REGISTERS.iter().zip(before.iter().zip(after)) {
            if before != after {
                line!(text, "{}: {before:#x}, then {after:#x}", register.name);
            }
        }
    }
    if wrong.selectors {
        line!(text, "the selector of TR, LDTR, FS or GS has changed");
    }
    if let Some(base) = wrong.local_base {
        line!(text, "LDTR leads to another base: {base:#x}");
    }
    wrong.traps != 0 || wrong.values.is_some() || wrong.selectors || wrong.local_base.is_some()
}
