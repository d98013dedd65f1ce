//! Taking the machine over and giving it back, again and again.

use super::{Stage, state};
use crate::finding::Finding;
use anyhow::{Context, Result, bail, ensure};
use std::thread;
use std::time::Duration;

pub(super) fn start_and_stop(stage: &mut Stage<'_>) -> Result<()> {
    drop(stage.boot_with_driver()?);
    stage.witness_nothing()?;
    stage.must(&["start"])?;
    stage.witness()?;
    let status = stage.status()?;
    ensure!(
        status["cores"].as_u64() == Some(u64::from(stage.options.cpus)),
        "status: {status}"
    );
    stage.must(&["stop"])?;
    stage.witness_nothing()?;
    stage.end()
}

pub(super) fn fifty_under_load(stage: &mut Stage<'_>) -> Result<()> {
    under_load(stage, 50)
}

pub(super) fn thousand_under_load(stage: &mut Stage<'_>) -> Result<()> {
    stage.options.time_limit = Duration::from_hours(2);
    under_load(stage, 1000)
}

fn under_load(stage: &mut Stage<'_>, cycles: u32) -> Result<()> {
    stage.options.time_limit = stage.options.time_limit.max(Duration::from_mins(5));
    let client = stage.boot_with_driver()?;
    // Without load: the stack selector depends on what was interrupted.
    let before = state::state(stage)?;
    for program in ["compute", "syscalls", "jit"] {
        client.run_program(program, "")?;
    }
    client.start_service("simple_wdm")?;
    for cycle in 1..=cycles {
        let one = || -> Result<()> {
            stage.must(&["start"])?;
            // The load runs below the hypervisor for a while.
            thread::sleep(Duration::from_millis(30));
            if cycle % 5 == 1 {
                stage.witness()?;
            }
            if stage.status()?["findings"] != 0 {
                let findings = stage.findings()?;
                bail!(
                    "the load caused {}",
                    findings
                        .first()
                        .map_or_else(|| "?".to_owned(), Finding::describe)
                );
            }
            stage.must(&["stop"])?;
            Ok(())
        };
        one().with_context(|| format!("cycle {cycle} of {cycles}"))?;
    }
    stage.witness_nothing()?;
    client.stop_service("simple_wdm")?;
    for program in ["compute", "syscalls", "jit"] {
        client.stop_program(program)?;
    }
    let differences = state::differences(&before, &state::state(stage)?);
    ensure!(
        differences.is_empty(),
        "after {cycles} cycles: {}",
        differences.join("; ")
    );
    stage.end()
}

pub(super) fn interleavings(stage: &mut Stage<'_>) -> Result<()> {
    for quantum in (1..=31).step_by(2) {
        stage.options.quantum = quantum;
        super::specimens::every_attack(stage).with_context(|| format!("quantum {quantum}"))?;
    }
    Ok(())
}
