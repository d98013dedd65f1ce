//! What the lab's firmware leaves behind on AMD's processors. Without these
//! options a test of a refusal would test nothing.

use super::Stage;
use anyhow::{Context, Result, ensure};

/// AMD64 APM volume 2, "`VM_CR` MSR".
const LOCK: u64 = 1 << 3;
const SVMDIS: u64 = 1 << 4;
/// "Extended Feature Enable Register (EFER)".
const SVME: u64 = 1 << 12;

/// Boot words, `VM_CR` on the first processor and on the others, EFER.SVME.
const VARIANTS: [(&str, u64, u64, bool); 6] = [
    ("", 0, 0, false),
    ("svm=locked-on", LOCK, LOCK, false),
    ("svm=disabled", SVMDIS, SVMDIS, false),
    ("svm=locked", LOCK | SVMDIS, LOCK | SVMDIS, false),
    ("svm=bsp-only", 0, LOCK | SVMDIS, false),
    ("svme=set", 0, 0, true),
];

pub(super) fn svm_switches(stage: &mut Stage<'_>) -> Result<()> {
    for (words, first, others, svme) in VARIANTS {
        stage.forget_boot_words();
        stage.boot_words(words);
        let machine = stage.boot()?;
        let registers = machine.registers()?;
        let cpus = registers.as_array().context("registers")?;
        ensure!(
            cpus.len() == machine.options().cpus as usize,
            "{} processors",
            cpus.len()
        );
        for (number, cpu) in cpus.iter().enumerate() {
            let expected = if number == 0 { first } else { others };
            let register = |name: &str| cpu[name].as_u64().context("a register");
            ensure!(
                register("vm_cr")? == expected && (register("efer")? & SVME != 0) == svme,
                "\"{words}\": CPU {number} has VM_CR {} and EFER {}",
                cpu["vm_cr"],
                cpu["efer"]
            );
        }
        machine.shut_down()?;
    }
    Ok(())
}
