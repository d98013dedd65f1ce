//! Callers as they come: two at once, killed ones, and one that never reads.

use super::Stage;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};

/// Exit code for everything but a machine that does not fit.
const OTHER: i32 = 1;

/// Waits until no start or stop is under way; the state then.
fn settled(stage: &Stage<'_>) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let status = stage.status()?;
        let now = status["state"].as_str().context("a status without state")?;
        if !matches!(now, "starting" | "stopping") {
            return Ok(now.to_owned());
        }
        ensure!(Instant::now() < end, "{now} for ever");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Two callers want the same at the same time: one does it, the other is told that
/// it is being done, or has been.
fn both(stage: &Stage<'_>, verb: &str, done: &str) -> Result<()> {
    let children = [stage.begin(&[verb])?, stage.begin(&[verb])?];
    let mut successes = 0;
    for child in children {
        let output = child.wait_with_output()?;
        match output.status.code() {
            Some(0) => successes += 1,
            Some(OTHER) => {}
            code => bail!(
                "{verb} ended with {code:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
    ensure!(
        successes == 1,
        "{successes} of two callers have done {verb}"
    );
    let now = settled(stage)?;
    ensure!(now == done, "after {verb} twice: {now}");
    Ok(())
}

pub(super) fn two_at_once(stage: &mut Stage<'_>) -> Result<()> {
    const ROUNDS: u32 = 5;
    drop(stage.boot_with_driver()?);
    for round in 1..=ROUNDS {
        let one = || -> Result<()> {
            both(stage, "start", "monitoring")?;
            stage.witness()?;
            both(stage, "stop", "stopped")?;
            stage.witness_nothing().map(drop)
        };
        one().with_context(|| format!("round {round}"))?;
    }
    stage.end()
}

/// A start goes on to its end when its caller is killed, or has never begun; so does
/// a stop. A killed reader takes nothing with it.
pub(super) fn killed(stage: &mut Stage<'_>) -> Result<()> {
    const LONGEST: u64 = 120;
    let client = stage.boot_with_driver()?;
    let mut seen = [0; 2];
    // A slow host needs longer delays for the other half of the moments.
    let longer = (1..6).map(|doubled| LONGEST << doubled);
    for delay in (0..LONGEST).step_by(8).chain(longer) {
        if delay > LONGEST && !seen.contains(&0) {
            break;
        }
        let mut caller = stage.begin(&["start"])?;
        thread::sleep(Duration::from_millis(delay));
        caller.kill()?;
        caller.wait()?;
        match settled(stage)?.as_str() {
            "stopped" => {
                seen[0] += 1;
                stage.must(&["start"])?;
            }
            "monitoring" => seen[1] += 1,
            other => bail!("killed after {delay} ms: {other}"),
        }
        stage.witness()?;
        let mut caller = stage.begin(&["stop"])?;
        thread::sleep(Duration::from_millis(delay));
        caller.kill()?;
        caller.wait()?;
        if settled(stage)? == "monitoring" {
            stage.must(&["stop"])?;
        }
        stage.witness_nothing()?;
    }
    ensure!(
        seen.iter().all(|count| *count > 0),
        "of the killed starts {} never began and {} were completed: no such moment was met",
        seen[0],
        seen[1]
    );
    stage.must(&["start"])?;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(stage.begin(&["watch", "--no-log"])?);
    }
    thread::sleep(Duration::from_millis(300));
    for reader in &mut readers {
        reader.kill()?;
        reader.wait()?;
    }
    client.start_service("pool_shellcode")?;
    thread::sleep(Duration::from_millis(700));
    ensure!(
        !stage.findings()?.is_empty(),
        "killed readers have taken the findings with them"
    );
    client.stop_service("pool_shellcode")?;
    stage.must(&["stop"])?;
    stage.witness_nothing()?;
    stage.end()
}

/// Requests are presented in whatever thread completes or forwards another: nothing
/// is locked against itself, and everybody who waits is answered.
pub(super) fn handed_over(stage: &mut Stage<'_>) -> Result<()> {
    const ROUNDS: u32 = 4;
    const READERS: usize = 6;
    stage.boot_words("wdf=hand-over");
    let client = stage.boot_with_driver()?;
    for round in 1..=ROUNDS {
        stage.must(&["start"])?;
        // A finding a round, those of the earlier rounds at once.
        let count = round.to_string();
        let all = [
            "watch",
            "--all",
            "--no-log",
            "--count",
            &count,
            "--timeout",
            "60",
        ];
        let mut readers = Vec::new();
        for _ in 0..READERS {
            readers.push(stage.begin(&all)?);
        }
        // In the last round the finding and the readers come at the same time.
        let delay = u64::from(ROUNDS - round) * 200;
        thread::sleep(Duration::from_millis(delay));
        client.start_service("pool_shellcode")?;
        for reader in readers {
            let output = reader.wait_with_output()?;
            ensure!(
                output.status.success(),
                "round {round}: a reader ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        client.stop_service("pool_shellcode")?;
        let parked = stage.begin(&["watch", "--no-log", "--timeout", "2"])?;
        let mut others = vec![stage.begin(&["stop"])?];
        for _ in 0..3 {
            others.push(stage.begin(&["status"])?);
        }
        for other in others {
            let output = other.wait_with_output()?;
            ensure!(
                output.status.success(),
                "round {round}: stop or status ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let _ = parked.wait_with_output()?;
        stage.witness_nothing()?;
    }
    stage.end()
}

/// Nobody reads: what cannot be kept is counted, the guest goes on, and the accounts
/// balance.
pub(super) fn never_reads(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    for _ in 0..4 {
        client.machine("workload first-touch 4000")?;
    }
    let status = stage.status()?;
    let dropped: u64 = status["dropped"]
        .as_object()
        .context("dropped")?
        .values()
        .filter_map(Value::as_u64)
        .sum();
    ensure!(dropped > 0, "nothing was dropped: {status}");
    let output = stage.hvdetect(&["watch", "--all", "--no-log", "--timeout", "0.5"])?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(
        output.code == 0 && said.contains("dropped") && !said.contains("DO NOT BALANCE"),
        "watch: {} {said}",
        output.code
    );
    client.machine("workload warm-touch 0")?;
    stage.must(&["stop"])?;
    stage.witness_nothing()?;
    stage.end()
}
