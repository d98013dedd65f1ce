//! SVM as a guest's kernel finds it while it is off: each instruction is undefined,
//! and the two registers read as firmware left them (AMD64 APM volume 3, "VMRUN" and
//! its like; volume 2, "SVM Related MSRs").
//!
//! Below the hypervisor the processor has EFER.SVME set, so what is undefined here is
//! undefined there by interception alone. A line with `WRONG` says what is not so;
//! the rest is for comparison.

use crate::instr::{self, Operands, Routine};
use crate::line;
use crate::text::Text;
use crate::trap::{Outcome, attempt};

const EFER: u32 = 0xC000_0080;
const SVME: u64 = 1 << 12;
const UNDEFINED: u64 = 6;

/// Every instruction of SVM.
pub(crate) const INSTRUCTIONS: [(&str, Routine); 8] = [
    ("VMRUN", instr::vmrun),
    ("VMMCALL", instr::vmmcall),
    ("VMLOAD", instr::vmload),
    ("VMSAVE", instr::vmsave),
    ("STGI", instr::stgi),
    ("CLGI", instr::clgi),
    ("SKINIT", instr::skinit),
    ("INVLPGA", instr::invlpga),
];

fn read(register: u32) -> Outcome {
    let operands = Operands {
        rcx: register.into(),
        ..Operands::default()
    };
    attempt(instr::rdmsr, &operands)
}

/// Whether CPUID Fn8000_0001 ECX says that there is SVM.
fn offered() -> bool {
    let leaf = |rax| {
        let operands = Operands {
            rax,
            ..Operands::default()
        };
        match attempt(instr::cpuid, &operands) {
            Outcome::Done(found) => found,
            Outcome::Fault(..) => operands,
        }
    };
    leaf(0x8000_0000).rax >= 0x8000_0001 && leaf(0x8000_0001).rcx & 4 != 0
}

/// Every row.
pub(crate) fn all(text: &mut Text<'_>) {
    for (name, routine) in INSTRUCTIONS {
        let outcome = attempt(routine, &Operands::default());
        let undefined = matches!(&outcome, Outcome::Fault(trap, _) if trap.vector == UNDEFINED);
        let verdict = if undefined { "" } else { "WRONG: " };
        line!(text, "{name}: {verdict}{outcome}");
    }
    line!(text, "SVM is offered: {}", offered());
    for (name, register) in [("VM_CR", 0xC001_0114), ("VM_HSAVE_PA", 0xC001_0117)] {
        match read(register) {
            Outcome::Done(found) => {
                line!(
                    text,
                    "{name}: {:#x}",
                    found.rdx << 32 | found.rax & 0xFFFF_FFFF
                );
            }
            // Below a hypervisor that shows no SVM, and on Intel's processors.
            outcome @ Outcome::Fault(..) => line!(text, "{name}: {outcome}"),
        }
    }
    enable(text);
}

/// The switch itself: what it takes, and back.
fn enable(text: &mut Text<'_>) {
    let Outcome::Done(found) = read(EFER) else {
        line!(text, "EFER: WRONG: it faults");
        return;
    };
    let before = found.rdx << 32 | found.rax & 0xFFFF_FFFF;
    let write = |value: u64| Operands {
        rax: value & 0xFFFF_FFFF,
        rcx: EFER.into(),
        rdx: value >> 32,
        ..Operands::default()
    };
    let set = attempt(instr::wrmsr, &write(before | SVME));
    line!(text, "EFER.SVME set: {set}");
    if set.done()
        && let Outcome::Done(found) = read(EFER)
    {
        line!(text, "EFER.SVME reads {}", found.rax >> 12 & 1);
    }
    let back = attempt(instr::wrmsr, &write(before));
    line!(text, "EFER as before: {back}");
}
