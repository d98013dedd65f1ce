//! Specimens: each driver of `tests/specimens` does one thing that a rootkit
//! does, or is a benign control; its `expect.json` says what must be found.
//!
//! Beyond the findings, two things are checked from outside: the witness looks
//! at the machine while the specimen runs, and the emulator's own count of
//! retired instructions shows that no instruction of a foreign page was executed
//! before the hypervisor was asked about it.

use super::Stage;
use crate::finding::{Expectation, Finding};
use crate::images;
use crate::machine::{Emulator, Look, Vendor};
use crate::place;
use crate::session::service_name;
use anyhow::{Context, Result, bail, ensure};
use std::thread;
use std::time::{Duration, Instant};

/// Kinds whose finding comes from the first fetch of a page that must not be
/// executed.
const FIRST_FETCH: [&str; 4] = [
    "unbacked-execution",
    "nonexec-section-execution",
    "discarded-section-execution",
    "user-page-execution",
];

fn expectation(name: &str) -> Result<Expectation> {
    Expectation::read(
        &place::workspace()
            .join("tests/specimens")
            .join(name)
            .join("expect.json"),
    )
}

/// Whether the specimen makes sense on processors of this vendor, in this emulator.
pub(super) fn suits(name: &str, vendor: Vendor, emulator: Emulator) -> Result<bool> {
    let expected = expectation(name)?;
    Ok(expected.only.is_none_or(|only| only == vendor) && !expected.not_on.contains(&emulator))
}

/// The names of those that make sense on this machine.
fn names(stage: &Stage<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in images::specimen_names()? {
        if suits(&name, stage.options.vendor, stage.options.emulator)? {
            names.push(name);
        }
    }
    Ok(names)
}

/// What the table says of a specimen.
pub(super) fn about(name: &str) -> Result<String> {
    let expected = expectation(name)?;
    if !expected.about.is_empty() {
        return Ok(expected.about);
    }
    Ok(if expected.silent {
        "benign: nothing is found".to_owned()
    } else {
        let kinds: Vec<&str> = expected.kinds.iter().map(|k| k.kind.as_str()).collect();
        format!("found: {}", kinds.join(", "))
    })
}

pub(super) fn found_as_expected(stage: &mut Stage<'_>, name: &str) -> Result<()> {
    stage.options.count_frames = true;
    attack(stage, name, &["start"]).map(drop)
}

/// Every form of a write is a case of its own without the monitor trap flag.
const ALL_FORMS: &str = "self-writer-forms";

pub(super) fn without_mtf(stage: &mut Stage<'_>) -> Result<()> {
    for name in names(stage)? {
        let expected = expectation(&name)?;
        if name != ALL_FORMS
            && expected
                .kinds
                .iter()
                .any(|k| k.kind == "self-modifying-page" || k.kind == "module-code-write")
        {
            attack(stage, &name, &["start", "--no-mtf"]).context(name)?;
        }
    }
    Ok(())
}

pub(super) fn all_forms_without_mtf(stage: &mut Stage<'_>) -> Result<()> {
    attack(stage, ALL_FORMS, &["start", "--no-mtf"]).map(drop)
}

/// Every specimen with each combination of AMD's optional features taken away.
pub(super) fn without_options(stage: &mut Stage<'_>) -> Result<()> {
    for options in [
        &["start", "--no-next-rip"][..],
        &["start", "--no-flush-by-asid"],
        &["start", "--no-next-rip", "--no-flush-by-asid"],
    ] {
        for name in names(stage)? {
            attack(stage, &name, options).with_context(|| format!("{name} with {options:?}"))?;
        }
    }
    Ok(())
}

/// Every specimen but the one that has instructions which old processors lack.
pub(super) fn on_an_old_processor(stage: &mut Stage<'_>) -> Result<()> {
    for name in names(stage)? {
        if name != ALL_FORMS {
            attack(stage, &name, &["start"]).context(name)?;
        }
    }
    Ok(())
}

/// Every specimen once, each on a fresh machine.
pub(super) fn every_attack(stage: &mut Stage<'_>) -> Result<()> {
    for name in names(stage)? {
        attack(stage, &name, &["start"]).context(name)?;
    }
    Ok(())
}

/// One specimen on a fresh machine: found as it says, or silent. The findings, JSON
/// lines.
pub(super) fn attack(stage: &mut Stage<'_>, name: &str, start: &[&str]) -> Result<String> {
    let expected = expectation(name)?;
    ensure!(
        expected.service == service_name(&images::specimen_file(name)),
        "expect.json names service {}, the file is {}",
        expected.service,
        images::specimen_file(name)
    );
    let client = stage.boot_with_driver()?;
    if expected.before_start {
        client.start_service(&expected.service)?;
        stage.must(start)?;
    } else {
        stage.must(start)?;
        client.start_service(&expected.service)?;
    }
    let findings = wait(stage, &expected)?;
    has_said(stage, &expected.says)?;
    has_said(stage, &expected.says_below)?;
    expected.check(&findings, &stage.entries()?)?;
    before_the_first_instruction(stage, &findings)?;
    stage.witness()?;
    let text = stage.findings_text()?;
    client.stop_service(&expected.service)?;
    stage.must(&["stop"])?;
    stage.end()?;
    Ok(text)
}

/// Leaves the specimen its time, looking at the machine twice, then waits for
/// findings that are on their way.
fn wait(stage: &Stage<'_>, expected: &Expectation) -> Result<Vec<Finding>> {
    let run = Duration::from_millis(expected.run_ms);
    for _ in 0..2 {
        thread::sleep(run / 3);
        stage.witness()?;
    }
    thread::sleep(run / 3);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let findings = stage.findings()?;
        if expected.satisfied(&findings, &stage.entries()?) || Instant::now() > end {
            return Ok(findings);
        }
    }
}

/// Specimens check what their own instructions did, and say it.
fn has_said(stage: &Stage<'_>, says: &[String]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let console = stage.machine()?.console();
        let missing = says.iter().find(|words| !console.contains(words.as_str()));
        match missing {
            None => return Ok(()),
            Some(words) if Instant::now() > end => bail!("the specimen has not said \"{words}\""),
            Some(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The emulator counts the instructions that retire from each frame below the
/// hypervisor. At the first exit for a fetch from a foreign frame that count
/// must be zero.
fn before_the_first_instruction(stage: &Stage<'_>, findings: &[Finding]) -> Result<()> {
    if !stage.options.count_frames || !stage.options.emulator.offers(Look::Counts) {
        return Ok(());
    }
    let fetches = stage.machine()?.fetches()?;
    ensure!(
        fetches["lost"].as_u64() == Some(0),
        "the emulator lost fetch events"
    );
    let events = fetches["events"].as_array().context("fetch events")?;
    for finding in findings {
        if !FIRST_FETCH.contains(&finding.kind.as_str()) {
            continue;
        }
        let frame = finding.frame().context("a finding without an address")?;
        let Some(first) = events
            .iter()
            .find(|event| event["frame"].as_u64() == Some(frame))
        else {
            bail!(
                "no exit for a fetch from frame {frame:#x} of {}",
                finding.describe()
            );
        };
        ensure!(
            first["retired"].as_u64() == Some(0),
            "{} instructions of frame {frame:#x} retired before {}",
            first["retired"],
            finding.describe()
        );
    }
    Ok(())
}

/// Every specimen, one after the other on one machine that nobody monitors. The
/// driver is loaded, since some of them attack the modules that come with it.
pub(super) fn on_the_bare_machine(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    for name in names(stage)? {
        let expected = expectation(&name)?;
        client
            .start_service(&expected.service)
            .context(name.clone())?;
        thread::sleep(Duration::from_millis(expected.run_ms));
        has_said(stage, &expected.says).context(name.clone())?;
        client.stop_service(&expected.service).context(name)?;
    }
    stage.end()
}

/// Exits of all kinds so far.
fn exits(stage: &Stage<'_>) -> Result<u64> {
    let status = stage.status()?;
    let counts = status["exits"].as_object().context("exits in status")?;
    Ok(counts.values().filter_map(serde_json::Value::as_u64).sum())
}

/// A driver that writes and runs one page all the time is told of once, and then
/// costs a few exits a call, however long it goes on.
pub(super) fn mixed_section_is_bounded(stage: &mut Stage<'_>) -> Result<()> {
    const CALLS: u64 = 2000;
    let name = "rwx-driver";
    let expected = expectation(name)?;
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    let before = exits(stage)?;
    client.start_service(&expected.service)?;
    has_said(stage, &expected.says)?;
    let cost = exits(stage)? - before;
    ensure!(
        cost < 4 * CALLS,
        "{CALLS} calls into a section that is written cost {cost} exits"
    );
    thread::sleep(Duration::from_millis(300));
    expected.check(&stage.findings()?, &stage.entries()?)?;
    client.stop_service(&expected.service)?;
    stage.must(&["stop"])?;
    stage.end()
}

/// Drivers come and go: their frames change hands between code and data.
pub(super) fn driver_storm(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    for round in 0..25 {
        for service in ["simple_wdm", "exerciser", "page_table_churn"] {
            client
                .start_service(service)
                .with_context(|| format!("round {round}"))?;
        }
        for service in ["exerciser", "page_table_churn", "simple_wdm"] {
            client
                .stop_service(service)
                .with_context(|| format!("round {round}"))?;
        }
    }
    stage.witness()?;
    let findings = stage.findings()?;
    ensure!(
        findings.is_empty(),
        "drivers that come and go caused {}",
        findings[0].describe()
    );
    stage.must(&["stop"])?;
    stage.end()
}

pub(super) fn programs_are_silent(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    for program in ["jit", "compute", "syscalls"] {
        client.run_program(program, "")?;
    }
    thread::sleep(Duration::from_millis(1500));
    stage.witness()?;
    let findings = stage.findings()?;
    ensure!(
        findings.is_empty(),
        "benign programs caused {}",
        findings[0].describe()
    );
    for program in ["jit", "compute", "syscalls"] {
        client.stop_program(program)?;
    }
    stage.must(&["stop"])?;
    stage.end()
}
