//! What the comparison with the bare machine must forgive, because it is meant
//! (`docs/src/allow-list.md`), has to be so: below the hypervisor there is no VMX.

use super::Stage;
use super::exerciser::Exerciser;
use crate::finding::number;
use anyhow::{Context, Result, ensure};

/// CPUID.01H:ECX.VMX.
const CPUID_VMX: u64 = 1 << 5;
/// `IA32_FEATURE_CONTROL`: VMX outside SMX.
const OUTSIDE_SMX: u64 = 1 << 2;

/// The numbers of the one line that begins so.
fn numbers(lines: &[String], start: &str) -> Result<Vec<u64>> {
    let rest = lines
        .iter()
        .find_map(|line| line.strip_prefix(start))
        .with_context(|| format!("no line \"{start}\" in {lines:?}"))?;
    Ok(rest.split_whitespace().filter_map(number).collect())
}

pub(super) fn vmx_is_hidden(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    let exerciser = Exerciser::open(&client)?;
    let leaf = |lines: &[String]| numbers(lines, "cpuid 0x1.0x0:");
    let bare = leaf(&exerciser.ask("0 cpuid 1 1")?)?;
    ensure!(
        bare.get(2).is_some_and(|ecx| ecx & CPUID_VMX != 0),
        "the bare processor has no VMX: {bare:x?}"
    );
    stage.must(&["start"])?;
    let below = leaf(&exerciser.ask("0 cpuid 1 1")?)?;
    ensure!(
        below.get(2).is_some_and(|ecx| ecx & CPUID_VMX == 0),
        "CPUID shows VMX: {below:x?}"
    );
    let control = numbers(&exerciser.ask("0 msrs 0x3A 1")?, "msr 0x3a:")?;
    ensure!(
        control
            .first()
            .is_some_and(|value| value & OUTSIDE_SMX == 0),
        "IA32_FEATURE_CONTROL allows VMX: {control:x?}"
    );
    let capabilities = exerciser.ask("0 msrs 0x480 20")?;
    ensure!(
        capabilities.iter().all(|line| !line.contains(" high ")),
        "VMX capability registers are there: {capabilities:?}"
    );
    ensure!(
        capabilities
            .iter()
            .all(|line| !line.contains("registers kept: false")),
        "RDMSR that faults changes registers: {capabilities:?}"
    );
    let registers = exerciser.ask("0 cr 4")?;
    let flips: Vec<&String> = registers
        .iter()
        .filter(|line| line.starts_with("cr4 ^ 0x2000:"))
        .collect();
    ensure!(
        !flips.is_empty() && flips.iter().all(|line| !line.contains("reads")),
        "CR4.VMXE can be set: {flips:?}"
    );
    stage.must(&["stop"])?;
    exerciser.close()?;
    stage.end()
}
