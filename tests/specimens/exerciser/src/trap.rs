//! Attempts: one instruction, and what came of it.
//!
//! An attempt runs on the caller's processor with interrupts off and an IDT whose
//! first 32 gates lead to [`instr::vector`], but for NMI, double fault and
//! machine check, which stay the kernel's with their own stacks. One at a time in
//! the whole driver: the IOCTL path is serialized by a lock of `lib.rs`.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::instr::{self, Operands, Routine, TableRegister, Trap};
use crate::tables::Tables;

/// Gates that stay the kernel's.
const KERNELS: [usize; 3] = [2, 8, 18];

const R0_CODE: u64 = 0x10;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: changed with interrupts off by whoever holds the driver's lock.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));

/// The kernel's table of which ours was made: each processor has its own.
static COPIED: AtomicU64 = AtomicU64::new(0);

/// What came of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// The instruction retired.
    Done(Operands),
    /// It faulted, so far behind the start of its routine.
    Fault(Trap, u64),
}

/// A 64-bit interrupt gate of ring 0.
pub(crate) fn gate(handler: u64, ist: u64, dpl: u64) -> [u64; 2] {
    let low = handler & 0xFFFF
        | R0_CODE << 16
        | ist << 32
        | 0x8E00 << 32
        | dpl << 45
        | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

/// Where IDTR points.
pub(crate) fn base(image: &TableRegister) -> u64 {
    image
        .iter()
        .skip(1)
        .rev()
        .fold(0, |base, &part| base << 16 | u64::from(part))
}

/// IDTR for a whole table at `base`.
pub(crate) fn register(base: u64, limit: u16) -> TableRegister {
    let part = |at: u32| (base >> (16 * at) & 0xFFFF) as u16;
    [limit, part(0), part(1), part(2), part(3)]
}

/// The kernel's gates with ours laid over, in our table.
fn prepare(kernels: &TableRegister) -> TableRegister {
    let table = TABLE.0.get();
    if COPIED.swap(base(kernels), Ordering::Relaxed) == base(kernels) {
        return register(table as u64, 0xFFF);
    }
    let from = base(kernels) as *const [[u64; 2]; 256];
    // SAFETY: the kernel's IDT has 256 gates; interrupts are off and the driver's
    // lock is held, so nobody else uses ours.
    unsafe { core::ptr::copy_nonoverlapping(from, table, 1) };
    // SAFETY: as above.
    let gates = unsafe { &mut *table };
    for (vector, slot) in gates.iter_mut().enumerate().take(instr::VECTORS) {
        if !KERNELS.contains(&vector) {
            *slot = gate(instr::vector(vector), 0, 3);
        }
    }
    register(table as u64, 0xFFF)
}

/// Runs `work` with interrupts off and this driver's gates in place.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> T {
    let on = instr::interrupts_off();
    let kernels = instr::idt();
    let ours = prepare(&kernels);
    // SAFETY: every gate leads to code that is there.
    unsafe { instr::load_idt(&ours) };
    let result = work();
    // SAFETY: it was loaded before.
    unsafe { instr::load_idt(&kernels) };
    if on {
        // SAFETY: they were on before.
        unsafe { instr::interrupts_on() };
    }
    result
}

/// As [`guarded`], with every gate of ours on this slot of the interrupt-stack table.
pub(crate) fn guarded_on<T>(slot: u64, work: impl FnOnce() -> T) -> T {
    guarded(|| {
        let table = TABLE.0.get();
        // SAFETY: interrupts are off and the driver's lock is held.
        let gates = unsafe { &mut *table };
        for (vector, entry) in gates.iter_mut().enumerate().take(instr::VECTORS) {
            if !KERNELS.contains(&vector) {
                *entry = gate(instr::vector(vector), slot, 3);
            }
        }
        let result = work();
        // The gates are to be made anew.
        COPIED.store(0, Ordering::Relaxed);
        result
    })
}

/// Interrupt-stack-table slot of NMIs: a stack that is always there.
const NMI_STACK: u64 = 3;

/// Runs the code at `address`, which `tables` give to ring 3, in ring 3 until it
/// faults; how far behind `address`, and what the fault was.
pub(crate) fn attempt_in_user_mode(tables: &Tables, address: u64) -> Outcome {
    let mut registers = Operands {
        rax: address,
        rcx: tables.root(),
        rdx: address + 0xF00,
        ..Operands::default()
    };
    let root = instr::cr3();
    let trap = guarded_on(NMI_STACK, || {
        // SAFETY: guarded; the fault's stack is not ring 3's.
        let trap = unsafe { instr::attempt(instr::enter_user, &mut registers) };
        // SAFETY: the tables that were in use.
        unsafe { instr::load_cr3(root) };
        trap
    });
    match trap {
        None => Outcome::Done(registers),
        Some(trap) => Outcome::Fault(trap, trap.rip.wrapping_sub(address)),
    }
}

/// One attempt.
pub(crate) fn attempt(routine: Routine, operands: &Operands) -> Outcome {
    let mut registers = *operands;
    let trap = guarded(|| {
        // SAFETY: guarded; routines restore what they change.
        unsafe { instr::attempt(routine, &mut registers) }
    });
    match trap {
        None => Outcome::Done(registers),
        Some(trap) => Outcome::Fault(trap, trap.rip.wrapping_sub(routine as usize as u64)),
    }
}

impl Outcome {
    /// Whether it retired.
    pub(crate) fn done(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

const NAMES: [&str; 32] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP",
    "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "22", "23", "24", "25", "26", "27",
    "#HV", "#VC", "#SX", "31",
];

/// Vector's name with its error code.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(_) => f.write_str("done"),
            Self::Fault(trap, offset) => {
                let name = NAMES.get((trap.vector & 0xFF) as usize).unwrap_or(&"?");
                write!(
                    f,
                    "{name}({:#x}) at +{offset:#x} cs {:#x} flags {:#x}",
                    trap.error, trap.cs, trap.flags
                )?;
                if trap.vector == 14 {
                    write!(f, " cr2 {:#x}", trap.cr2)?;
                }
                Ok(())
            }
        }
    }
}
