//! `cargo lab run`: one machine, the drivers and commands that were asked for.

use super::processor::Processor;
use crate::images::{self, Profile, Wanted};
use crate::machine::{Look, Machine, Options};
use crate::progress;
use crate::session::{self, Session};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `cargo lab run`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Arguments {
    #[command(flatten)]
    processor: Processor,
    /// Number of processors
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,
    /// RAM in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65536))]
    ram: u32,
    /// Longest run of instructions of one processor before the next has its turn
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=32))]
    quantum: u32,
    /// Seconds until the machine is ended, whatever it does
    #[arg(long, default_value_t = 120)]
    time_limit: u64,
    /// Do not load the hvdetect driver
    #[arg(long)]
    no_hv: bool,
    /// Load this driver file as a service after boot (repeatable)
    #[arg(long, value_name = "FILE.sys")]
    driver: Vec<PathBuf>,
    /// Run this command against the machine, "hvdetect …" (repeatable)
    #[arg(long, value_name = "COMMAND")]
    exec: Vec<String>,
    /// Words for MiniNT's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    boot: String,
    /// Print findings as JSON lines, and a last object {exit, reason}
    #[arg(long)]
    json: bool,
    /// Use images with assertions and overflow checks on
    #[arg(long, conflicts_with = "release")]
    debug: bool,
    /// Use images as shipped (the default)
    #[arg(long)]
    release: bool,
    /// Show the machine's log when it is over
    #[arg(long, short)]
    verbose: bool,
}

/// Boots, loads, runs, ends.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let outcome = attempt(arguments);
    if arguments.json {
        let (exit, reason) = match &outcome {
            Ok(code) => (*code, "finished".to_owned()),
            Err(error) => (1, format!("{error:#}")),
        };
        println!("{}", serde_json::json!({"exit": exit, "reason": reason}));
    }
    let code = outcome?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn attempt(arguments: &Arguments) -> Result<i32> {
    let tools = arguments.processor.tools()?;
    let profile = if arguments.debug {
        Profile::Debug
    } else {
        Profile::Release
    };
    let wanted = if arguments.no_hv {
        Wanted::Machine
    } else {
        Wanted::All
    };
    let images = images::build(&tools.toolchain, profile, wanted)?;
    let mut session = Session::new(&images);
    let mut services = Vec::new();
    for file in &arguments.driver {
        services.push(session.add_driver(file)?);
    }
    session.boot_words(&arguments.boot);
    let options = Options {
        cpus: arguments.cpus,
        ram: arguments.ram,
        quantum: arguments.quantum,
        time_limit: Duration::from_secs(arguments.time_limit),
        ..arguments.processor.options()?
    };
    if arguments.boot.contains("svm=") && !options.emulator.offers(Look::VmCr) {
        progress::note("this emulator's VM_CR always reads 0: svm=… changes nothing");
    }
    let machine = session.boot(options, Some(&tools.bochs))?;
    progress::note(&format!(
        "{}: {} {} processors",
        machine.hello().text,
        machine.hello().cpus,
        machine.options().model
    ));
    let result = with_machine(arguments, &session, &machine, &services);
    if arguments.verbose {
        for line in machine.console().lines() {
            eprintln!("com1: {line}");
        }
    }
    let result =
        result.with_context(|| format!("the machine's state at the failure\n{}", machine.report()));
    let code = result?;
    machine.shut_down()?;
    Ok(code)
}

fn with_machine(
    arguments: &Arguments,
    session: &Session<'_>,
    machine: &Machine,
    services: &[String],
) -> Result<i32> {
    let client = machine.client()?;
    if !arguments.no_hv {
        client.start_service("hvdetect")?;
    }
    for name in services {
        client.start_service(name)?;
        progress::note(&format!("service {name} started"));
    }
    let mut code = 0;
    if arguments.exec.is_empty() {
        println!("HVDETECT_LAB={}", machine.address());
        progress::note(&format!(
            "the machine stays up for {} s; connect with the line above, e.g.",
            machine.time_left().as_secs()
        ));
        progress::note(&format!(
            "HVDETECT_LAB={} {} status",
            machine.address(),
            session.cli().display()
        ));
        while machine.ended().is_none() && !machine.timed_out() {
            std::thread::sleep(Duration::from_millis(200));
        }
        return Ok(code);
    }
    for command in &arguments.exec {
        let words = session::words(command)?;
        let output = session.command(machine, &words)?;
        if arguments.json {
            eprint!("{}", output.stdout);
        } else {
            print!("{}", output.stdout);
        }
        eprint!("{}", output.stderr);
        if output.code != 0 {
            progress::note(&format!("`{command}` ended with exit code {}", output.code));
            code = output.code;
        }
    }
    if arguments.json && !arguments.no_hv {
        let words = session::words("hvdetect watch --json --all --no-log --timeout 0.5")?;
        print!("{}", session.command(machine, &words)?.stdout);
    }
    for name in services.iter().rev() {
        client.stop_service(name)?;
        progress::note(&format!("service {name} stopped"));
    }
    if !arguments.no_hv {
        client.stop_service("hvdetect")?;
    }
    Ok(code)
}
