//! The machine itself: it boots, ends, and does not hang unseen.

use super::Stage;
use crate::machine::Emulator;
use anyhow::{Result, ensure};
use std::thread;
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

pub(super) fn runs_programs(stage: &mut Stage<'_>) -> Result<()> {
    const PROGRAMS: [&str; 3] = ["jit", "compute", "syscalls"];
    let machine = stage.boot()?;
    let client = machine.client()?;
    for program in PROGRAMS {
        client.run_program(program, "")?;
    }
    thread::sleep(Duration::from_secs(1));
    for program in PROGRAMS {
        client.stop_program(program)?;
    }
    client.machine("workload syscalls 100")?;
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

/// The packaged Bochs 2.7: a second opinion on what its errors leave usable
/// (`docs/src/lab.md`). One processor, and no look from outside.
pub(super) fn packaged_bochs(stage: &mut Stage<'_>) -> Result<()> {
    crate::setup::emulator(Emulator::Bochs2)?;
    stage.options.emulator = Emulator::Bochs2;
    stage.options.time_limit = Duration::from_mins(4);
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    client.start_service("pool_shellcode")?;
    let end = Instant::now() + Duration::from_mins(1);
    let found = loop {
        let findings = stage.findings()?;
        if !findings.is_empty() || Instant::now() > end {
            break findings;
        }
    };
    ensure!(
        found.iter().any(|one| one.kind == "unbacked-execution"),
        "found: {found:?}"
    );
    client.stop_service("pool_shellcode")?;
    stage.must(&["stop"])?;
    stage.end()
}
