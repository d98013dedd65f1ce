//! The machine itself: it boots, ends, and does not hang unseen.

use super::Stage;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub(super) fn boots_and_shuts_down(stage: &mut Stage<'_>) -> Result<()> {
    let machine = stage.boot()?;
    let modules = machine.client()?.machine("modules")?;
    ensure!(
        modules.contains("ntoskrnl.exe"),
        "the module list lacks the kernel: {modules}"
    );
    machine.shut_down()
}

pub(super) fn large_memory(stage: &mut Stage<'_>) -> Result<()> {
    stage.options.ram = 8192;
    drop(stage.boot_with_driver()?);
    stage.must(&["start"])?;
    stage.witness()?;
    stage.must(&["stop"])?;
    stage.end()
}

/// The lab's own promise: a hang costs no more than the time limit and leaves a
/// report with registers and serial lines.
pub(super) fn a_hang_is_reported(stage: &mut Stage<'_>) -> Result<()> {
    stage.options.time_limit = Duration::from_secs(6);
    let begin = Instant::now();
    let machine = stage.boot()?;
    // No answer ever comes; the watchdog ends the wait.
    let answer = machine.client()?.machine("workload nop 1000000000");
    ensure!(answer.is_err(), "a machine that is busy for hours answered");
    let waited = begin.elapsed();
    ensure!(
        waited < Duration::from_secs(20),
        "the hang was noticed after {waited:?}"
    );
    let report = machine.report();
    for part in ["time limit", "rip=", "last serial lines", "MiniNT"] {
        ensure!(
            report.contains(part),
            "no \"{part}\" in the report:\n{report}"
        );
    }
    ensure!(machine.ended().is_some(), "the emulator still runs");
    Ok(())
}
