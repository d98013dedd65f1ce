//! `cargo lab test`: cases, two machines at a time, and a count at the end.

use crate::cases::{self, Instance, Stage};
use crate::images::{self, Images, Profile, Wanted};
use crate::machine::Emulator;
use crate::progress;
use crate::setup::{self, Tools};
use anyhow::{Result, bail};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Arguments of `cargo lab test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only cases whose name contains one of these
    names: Vec<String>,
    /// Also run the long campaigns
    #[arg(long)]
    long: bool,
    /// Test images with assertions and overflow checks on
    #[arg(long, conflicts_with = "release")]
    debug: bool,
    /// Test images as shipped (the default)
    #[arg(long)]
    release: bool,
    /// Machines at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
}

struct Failure {
    name: String,
    report: String,
}

/// Runs the cases; the exit code is 0 only if all passed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wanted: Vec<Instance> = cases::instances()?
        .into_iter()
        .filter(|instance| {
            let named = arguments
                .names
                .iter()
                .any(|name| instance.name.contains(name.as_str()));
            if arguments.names.is_empty() {
                arguments.long || !instance.long
            } else {
                named
            }
        })
        .collect();
    if wanted.is_empty() {
        bail!("no case has such a name; see `cargo lab list`");
    }
    let tools = setup::all()?;
    if wanted.iter().any(|one| one.emulator() == Emulator::Qemu) {
        setup::emulator(Emulator::Qemu)?;
    }
    let profile = if arguments.debug {
        Profile::Debug
    } else {
        Profile::Release
    };
    let images = images::build(&tools.toolchain, profile, Wanted::All)?;
    let seeded = if wanted.iter().any(Instance::seeded) {
        images.seeded(&tools.toolchain, profile)?
    } else {
        images.clone()
    };
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    // Each worker lives until the last case is over: its machines die with it.
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(instance) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let images = if instance.seeded() { &seeded } else { &images };
                    if let Some(report) = perform(instance, &tools, images) {
                        let failure = Failure {
                            name: instance.name.clone(),
                            report,
                        };
                        if let Ok(mut failures) = failures.lock() {
                            failures.push(failure);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    for failure in &failures {
        println!(
            "\n---- {} ----\n{}",
            failure.name,
            failure.report.trim_end()
        );
    }
    progress::note(&format!("{:.0} s", begin.elapsed().as_secs_f32()));
    println!(
        "{} passed, {} failed",
        wanted.len() - failures.len(),
        failures.len()
    );
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one case; the report if it failed.
fn perform(instance: &Instance, tools: &Tools, images: &Images) -> Option<String> {
    let begin = Instant::now();
    let mut stage = Stage::new(tools, images, instance.options());
    let outcome = catch_unwind(AssertUnwindSafe(|| instance.run(&mut stage)));
    let report = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("the case itself panicked".to_owned()),
    };
    let report = report.map(|text| match stage.report() {
        Some(machine) => format!("{text}\n{machine}"),
        None => text,
    });
    println!(
        "{} {} ({:.1} s)",
        if report.is_none() { "ok    " } else { "FAILED" },
        instance.name,
        begin.elapsed().max(Duration::ZERO).as_secs_f32()
    );
    report
}
