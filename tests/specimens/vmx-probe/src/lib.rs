//! Specimen: another hypervisor's first instructions.
//!
//! Each instruction of VMX is tried as a driver would that wants to launch a
//! hypervisor without asking CPUID. CR4.VMXE is clear, so each must end in #UD,
//! as it does on the bare processor, and nothing else may happen.

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

#[repr(C, align(4096))]
struct Block(UnsafeCell<[u64; 512]>);
// SAFETY: only instructions that fault would touch it.
unsafe impl Sync for Block {}
/// What would be the VMXON region, or its address.
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

const INSTRUCTIONS: [(&core::ffi::CStr, Routine); 12] = [
    (c"VMXON", instr::vmxon),
    (c"VMCALL", instr::vmcall),
    (c"VMXOFF", instr::vmxoff),
    (c"VMCLEAR", instr::vmclear),
    (c"VMPTRLD", instr::vmptrld),
    (c"VMPTRST", instr::vmptrst),
    (c"VMREAD", instr::vmread),
    (c"VMWRITE", instr::vmwrite),
    (c"VMLAUNCH", instr::vmlaunch),
    (c"VMRESUME", instr::vmresume),
    (c"INVEPT", instr::invept),
    (c"INVVPID", instr::invvpid),
];

unsafe extern "C" fn run(_context: PVOID) {
    let operands = Operands {
        rdx: BLOCK.0.get() as u64,
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
            harness::report(c"vmx-probe", name, wrong);
        }
    }
    harness::report(c"vmx-probe", c"wrong answers", wrong);
    while WORKER.pause(1000) {}
    Worker::leave();
}
