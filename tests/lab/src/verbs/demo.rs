//! `cargo lab demo`: from nothing to the first findings.
//!
//! One machine with four processors (Intel's, unless asked otherwise); monitoring is started on the running
//! system; one specimen after the other does what a rootkit does, then a benign
//! driver does what ordinary drivers do. What is found is shown as a person
//! would read it. The exit code is 0 only if every attack was found, the benign
//! one was not, and the witness agreed each time.

use super::processor::Processor;
use crate::cases::Stage;
use crate::finding::{Expectation, Finding};
use crate::images::{self, Profile, Wanted};
use crate::place;
use anyhow::Result;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// The attacks that are shown, and the benign control.
const ATTACKS: [&str; 4] = ["pool-shellcode", "manual-map", "inline-hook", "self-writer"];
const BENIGN: &str = "benign-churn";
/// How long after a specimen's unload its findings may come: many drain periods.
const AFTER_UNLOAD: Duration = Duration::from_secs(2);

/// Arguments of `cargo lab demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    processor: Processor,
}

/// Runs the demonstration.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let begin = Instant::now();
    let options = arguments.processor.options()?;
    let tools = arguments.processor.tools()?;
    let images = images::build(&tools.toolchain, Profile::Release, Wanted::All)?;
    let attacks: Vec<_> = ATTACKS
        .into_iter()
        .map(expectation)
        .collect::<Result<_>>()?;
    let benign = expectation(BENIGN)?;
    let mut stage = Stage::new(&tools, &images, options);
    let result = perform(&mut stage, &attacks, &benign);
    if let (Err(_), Some(state)) = (&result, stage.report()) {
        eprintln!("{state}");
    }
    result?;
    println!("\nAll of it took {:.0} s.", begin.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// What the specimen's file says of it.
fn expectation(name: &str) -> Result<Expectation> {
    let specimen = place::workspace().join("tests/specimens").join(name);
    Expectation::read(&specimen.join("expect.json"))
}

fn perform(stage: &mut Stage<'_>, attacks: &[Expectation], benign: &Expectation) -> Result<()> {
    let client = stage.boot_with_driver()?;
    {
        let machine = stage.machine()?;
        println!(
            "{} runs on {} emulated {} processors. hvdetect_driver.sys is loaded.\n",
            machine.hello().text,
            machine.hello().cpus,
            machine.options().model
        );
    }
    print!("$ hvdetect start\n{}", stage.must(&["start"])?);
    println!("The system goes on as the guest of a thin hypervisor.");
    match stage.witness()? {
        Some(testimony) => println!(
            "Seen from outside: {} pages are executable, none of them writable; {} frames of the \
             hypervisor are hidden.",
            testimony.executable, testimony.hypervisor_frames
        ),
        None => println!("(This emulator lets nobody look from outside.)"),
    }
    let mut seen = 0;
    for (number, attack) in attacks.iter().enumerate() {
        println!(
            "\n== Attack {} of {}: {}",
            number + 1,
            attacks.len(),
            title(attack)
        );
        client.start_service(&attack.service)?;
        let findings = new_findings(stage, attack, seen)?;
        attack.check(&findings, &stage.entries()?)?;
        stage.witness()?;
        for finding in &findings {
            println!("{}", finding.describe());
        }
        if let Some(first) = findings.first() {
            let text = stage.must(&["show", &first.seq.to_string()])?;
            println!("$ hvdetect show {}", first.seq);
            print!("{text}");
        }
        client.stop_service(&attack.service)?;
        // What a specimen does as it unloads (a hook that is taken back is a write
        // to code, too) is its own and not the next one's, and so are repeats that
        // the driver still holds back.
        seen = settle(stage)?;
    }
    println!("\n== Benign control: {}", title(benign));
    client.start_service(&benign.service)?;
    let findings = new_findings(stage, benign, seen)?;
    benign.check(&findings, &[])?;
    client.stop_service(&benign.service)?;
    println!("Nothing found, as it must be.");
    print!("\n$ hvdetect status\n{}", stage.must(&["status"])?);
    print!("\n$ hvdetect stop\n{}", stage.must(&["stop"])?);
    stage.witness_nothing()?;
    stage.end()?;
    println!("The machine was given back and has shut down; nothing was left behind.");
    Ok(())
}

fn title(expected: &Expectation) -> String {
    if expected.about.is_empty() {
        expected.service.clone()
    } else {
        format!("{} ({})", expected.about, expected.service)
    }
}

/// The number of the last finding, once no more have come for a while.
fn settle(stage: &Stage<'_>) -> Result<u64> {
    let last = || -> Result<u64> {
        let findings = stage.findings()?;
        Ok(findings
            .iter()
            .map(|finding| finding.seq)
            .max()
            .unwrap_or(0))
    };
    let end = Instant::now() + Duration::from_secs(10);
    let mut seen = last()?;
    loop {
        thread::sleep(AFTER_UNLOAD);
        let now = last()?;
        if now == seen || Instant::now() > end {
            return Ok(now);
        }
        seen = now;
    }
}

/// Findings after number `seen`, once all that is expected has come.
fn new_findings(stage: &Stage<'_>, expected: &Expectation, seen: u64) -> Result<Vec<Finding>> {
    thread::sleep(Duration::from_millis(expected.run_ms));
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let mut findings = stage.findings()?;
        findings.retain(|finding| finding.seq > seen);
        if expected.satisfied(&findings, &stage.entries()?) || Instant::now() > end {
            return Ok(findings);
        }
    }
}
