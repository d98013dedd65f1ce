//! Specimen: another hypervisor's first instructions, on AMD.
//!
//! Each instruction of SVM is tried as a driver would that wants to launch a
//! hypervisor without asking CPUID. EFER.SVME is clear, as far as a guest can know, so
//! each must end in #UD, as it does on the bare processor, and nothing else may happen.
//! Then EFER.SVME is set after all: below a hypervisor #GP, and it stays clear. (Where
//! it can be set it is cleared again.)

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../exerciser/src/instr.rs"]
#[allow(dead_code, reason = "shared with the exerciser, which uses all of it")]
mod instr;
#[path = "../../tables.rs"]
mod tables;
#[path = "../../exerciser/src/trap.rs"]
#[allow(dead_code, reason = "shared with the exerciser, which uses all of it")]
mod trap;

use core::cell::UnsafeCell;

use harness::Worker;
use instr::{Operands, Routine};
use trap::{Outcome, attempt};
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

const UNDEFINED: u64 = 6;
const PROTECTION: u64 = 13;
const EFER: u64 = 0xC000_0080;
const SVME: u64 = 1 << 12;

#[repr(C, align(4096))]
struct Block(UnsafeCell<[u64; 512]>);
// SAFETY: only instructions that fault would touch it.
unsafe impl Sync for Block {}
/// What would be the VMCB.
static BLOCK: Block = Block(UnsafeCell::new([0; 512]));

static WORKER: Worker = Worker::new();

/// The driver's entry point.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    WORKER.start(run)
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    WORKER.stop();
}

const INSTRUCTIONS: [(&core::ffi::CStr, Routine); 8] = [
    (c"VMRUN", instr::vmrun),
    (c"VMMCALL", instr::vmmcall),
    (c"VMLOAD", instr::vmload),
    (c"VMSAVE", instr::vmsave),
    (c"STGI", instr::stgi),
    (c"CLGI", instr::clgi),
    (c"SKINIT", instr::skinit),
    (c"INVLPGA", instr::invlpga),
];

/// Whether EFER.SVME can be set.
fn can_enable() -> bool {
    let efer = Operands {
        rcx: EFER,
        ..Operands::default()
    };
    let Outcome::Done(before) = attempt(instr::rdmsr, &efer) else {
        return true;
    };
    let enabling = Operands {
        rax: before.rax | SVME,
        rdx: before.rdx,
        ..efer
    };
    let written = attempt(instr::wrmsr, &enabling);
    let refused = matches!(written, Outcome::Fault(trap, _) if trap.vector == PROTECTION);
    let after = attempt(instr::rdmsr, &efer);
    let _ = attempt(
        instr::wrmsr,
        &Operands {
            rcx: EFER,
            ..before
        },
    );
    !refused || !matches!(after, Outcome::Done(after) if after.rax & SVME == 0)
}

unsafe extern "C" fn run(_context: PVOID) {
    let operands = Operands {
        // An address that the processor would take: another one is #GP before the intercept.
        rax: harness::physical_address(BLOCK.0.get() as u64),
        ..Operands::default()
    };
    let mut wrong = 0;
    for (name, routine) in INSTRUCTIONS {
        let expected = match attempt(routine, &operands) {
            Outcome::Fault(trap, _) => trap.vector == UNDEFINED,
            Outcome::Done(_) => false,
        };
        if !expected {
            wrong += 1;
            harness::report(c"svm-probe", name, wrong);
        }
    }
    let enabled = u64::from(can_enable());
    harness::report(c"svm-probe", c"EFER.SVME set", enabled);
    harness::report(c"svm-probe", c"wrong answers", wrong);
    while WORKER.pause(1000) {}
    Worker::leave();
}
