//! One booted machine: an emulator, the broker on its serial line, and a
//! watchdog. Whoever holds it may ask it anything at any time; when it is
//! dropped, nothing of it is left.
//!
//! The watchdog is a thread that outlives no machine. When the time is over it
//! takes down the processors' registers, ends the emulator and closes the
//! broker, so that everyone who waits for a reply goes on.

mod bochsrc;
mod broker;
mod client;
mod emulator;
pub(crate) mod exits;
mod offers;
mod options;
mod qemu;
mod qmp;

pub(crate) use broker::Hello;
pub(crate) use client::Client;
pub(crate) use offers::Look;
pub(crate) use options::{CpuidChange, Emulator, Model, Options, Vendor};

use crate::place::RunDirectory;
use crate::progress::last_lines;
use crate::setup::Bochs;
use anyhow::{Context, Result, bail};
use broker::Broker;
use emulator::Process;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The bytes that a machine boots from.
#[derive(Debug)]
pub(crate) struct BootFiles {
    /// The 64 KiB ROM.
    pub(crate) rom: Vec<u8>,
    /// The image at 1 MiB.
    pub(crate) image: Vec<u8>,
}

#[derive(Debug, Default)]
struct Watch {
    over: bool,
    timed_out: Option<String>,
}

type Shared = Arc<(Mutex<Watch>, Condvar)>;

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    options: Options,
    process: Process,
    broker: Arc<Broker>,
    hello: Hello,
    watch: Shared,
    watchdog: Option<JoinHandle<()>>,
    deadline: Instant,
    // Last, so that the files outlive everything above.
    directory: RunDirectory,
}

impl Machine {
    /// Boots a machine and waits until it says that it is ready.
    pub(crate) fn boot(options: Options, bochs: Option<&Bochs>, files: &BootFiles) -> Result<Self> {
        let directory = RunDirectory::new()?;
        fs::write(directory.path().join("rom.bin"), &files.rom)?;
        fs::write(directory.path().join("image.bin"), &files.image)?;
        let deadline = Instant::now() + options.time_limit;
        let (process, serial) = emulator::start(&options, bochs, directory.path())?;
        let broker = Arc::new(Broker::start(serial)?);
        let watch = Shared::default();
        let watchdog = thread::spawn({
            let (watch, process, broker) =
                (Arc::clone(&watch), process.clone(), Arc::clone(&broker));
            move || guard(&watch, &process, &broker, deadline)
        });
        let mut machine = Self {
            options,
            process,
            broker,
            hello: Hello {
                version: 0,
                cpus: 0,
                text: String::new(),
            },
            watch,
            watchdog: Some(watchdog),
            deadline,
            directory,
        };
        let hello = machine
            .broker
            .wait_for_hello(machine.time_left(), || machine.process.ended().is_some());
        let Some(hello) = hello else {
            machine.settle();
            bail!("the machine did not boot\n{}", machine.report());
        };
        machine.hello = hello;
        if machine.hello.cpus != machine.options.cpus {
            bail!(
                "{} of {} processors started\n{}",
                machine.hello.cpus,
                machine.options.cpus,
                machine.report()
            );
        }
        Ok(machine)
    }

    /// How it was made.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// What the machine said of itself when it was ready.
    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The broker's address, for `HVDETECT_LAB`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.broker.address()
    }

    /// A new connection to the machine.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(self.address(), self.time_left() + Duration::from_secs(5))
    }

    /// Time until the machine is ended.
    pub(crate) fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// All that came over the first serial line.
    pub(crate) fn console(&self) -> String {
        fs::read(self.console_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file that the first serial line goes to.
    pub(crate) fn console_path(&self) -> PathBuf {
        self.directory.path().join("com1.log")
    }

    /// Counters of every processor, now.
    pub(crate) fn counters(&self) -> Result<Value> {
        self.process.control("counters", Duration::from_secs(10))
    }

    /// Snapshots of the counters that the guest asked for (port 0xE6).
    pub(crate) fn marks(&self) -> Result<Value> {
        self.process.control("marks", Duration::from_secs(10))
    }

    /// How often root mode executed each address since the last call, as pairs; the
    /// first call only begins to count.
    pub(crate) fn profile(&self) -> Result<Value> {
        self.process.control("profile", Duration::from_secs(10))
    }

    /// Every VM exit so far for an instruction fetch, with the number of guest
    /// instructions that had retired from that frame before.
    pub(crate) fn fetches(&self) -> Result<Value> {
        self.process.control("fetches", Duration::from_secs(10))
    }

    /// Registers of every processor, now.
    pub(crate) fn registers(&self) -> Result<Value> {
        self.process.registers(Duration::from_secs(10))
    }

    /// Stops the machine for a moment and takes down its whole state.
    pub(crate) fn checkpoint(&self) -> Result<Vec<u8>> {
        let path = self.directory.path().join("checkpoint.bin");
        let answer = self
            .process
            .control("checkpoint checkpoint.bin", Duration::from_mins(1))?;
        if answer["ok"] != Value::Bool(true) {
            bail!("the emulator could not write a checkpoint");
        }
        let bytes = fs::read(&path).context("read the checkpoint")?;
        fs::remove_file(path)?;
        Ok(bytes)
    }

    /// Asks the machine to end with exit code 0 and waits for it.
    pub(crate) fn shut_down(&self) -> Result<()> {
        // The reply may be overtaken by the end.
        drop(self.client()?.machine("shutdown 0"));
        let status = self
            .process
            .wait(self.time_left())
            .with_context(|| format!("the machine did not shut down\n{}", self.report()))?;
        let expected = self.options.emulator.exit_code(0);
        if expected.is_some() && status.code() != expected {
            bail!(
                "the machine {}\n{}",
                emulator::describe(status),
                self.report()
            );
        }
        Ok(())
    }

    /// What a person needs to see after a failure: how the machine ended or that
    /// its time was over, its registers, and its last serial lines.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        let timed_out = lock(&self.watch.0).timed_out.clone();
        match (&timed_out, self.process.ended()) {
            (Some(registers), _) => {
                let limit = self.options.time_limit.as_secs();
                let _ = writeln!(
                    text,
                    "time limit of {limit} s reached; registers at that moment:\n{registers}"
                );
            }
            (None, Some(status)) => text += &self.describe_end(status),
            (None, None) => match self.registers() {
                Ok(value) => text.push_str(&describe_registers(&value)),
                // It may be about to end: a panic of the emulator closes its lines first.
                Err(error) => match self.process.wait(Duration::from_secs(2)) {
                    Some(status) => text += &self.describe_end(status),
                    None => {
                        let _ = writeln!(text, "{error:#}");
                    }
                },
            },
        }
        text.push_str("last serial lines:\n");
        for line in excerpt(&self.console()).lines() {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// How the emulator ended, with what it said and left.
    fn describe_end(&self, status: ExitStatus) -> String {
        let mut text = format!("the emulator {}\n", emulator::describe(status));
        if status.code() != Some(0) {
            text.push_str("its own last lines:\n");
            text.push_str(&last_lines(&self.process.log(), 8));
            text.push('\n');
        }
        if let Ok(bytes) = fs::read(self.directory.path().join("registers.json"))
            && let Ok(value) = serde_json::from_slice::<Value>(&bytes)
        {
            text.push_str(&describe_registers(&value));
        }
        text
    }

    /// At the deadline, leaves the watchdog the time to take down the registers.
    fn settle(&self) {
        let end = self.deadline + Duration::from_secs(5);
        while self.ended().is_none() && !self.timed_out() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the watchdog had to end it.
    pub(crate) fn timed_out(&self) -> bool {
        lock(&self.watch.0).timed_out.is_some()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        lock(&self.watch.0).over = true;
        self.watch.1.notify_all();
        self.process.kill();
        self.broker.close();
        if let Some(watchdog) = self.watchdog.take() {
            drop(watchdog.join());
        }
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn guard(watch: &Shared, process: &Process, broker: &Broker, deadline: Instant) {
    let mut state = lock(&watch.0);
    while !state.over {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let registers = process.registers(Duration::from_secs(3)).map_or_else(
                |error| format!("{error:#}\n"),
                |value| describe_registers(&value),
            );
            let counters = process
                .control("counters", Duration::from_secs(3))
                .map_or_else(|_| String::new(), |value| describe_counters(&value));
            state.timed_out = Some(registers + &counters);
            drop(state);
            process.kill();
            broker.close();
            return;
        }
        state = watch
            .1
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

/// The end of the serial log; if MiniNT stopped, from shortly before its first
/// `***` line on, with the whole chain of calls but without the raw words of the
/// stack.
fn excerpt(console: &str) -> String {
    const BEFORE: usize = 6;
    const LINES: usize = 30;
    const STOPPED_LINES: usize = 120;
    let lines: Vec<&str> = console.lines().collect();
    let Some(stop) = lines.iter().position(|line| line.contains("] *** ")) else {
        return lines[lines.len().saturating_sub(LINES)..].join("\n");
    };
    let told = |line: &&&str| !line.contains("] stack ");
    let from_stop = lines[stop.saturating_sub(BEFORE)..].iter();
    let shown: Vec<&str> = from_stop
        .filter(told)
        .take(STOPPED_LINES)
        .copied()
        .collect();
    shown.join("\n")
}

/// VM exits by reason, one line a processor.
fn describe_counters(all: &Value) -> String {
    let mut text = String::new();
    for (number, cpu) in all.as_array().into_iter().flatten().enumerate() {
        let exits: Vec<String> = cpu["exits"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, count)| format!("{count} of reason {reason}"))
            .collect();
        if !exits.is_empty() {
            let _ = writeln!(
                text,
                "  CPU {number}: {} guest and {} root instructions, VM exits: {}",
                cpu["guest"],
                cpu["root"],
                exits.join(", ")
            );
        }
    }
    text
}

/// Registers as a person reads them, one short paragraph a processor.
pub(crate) fn describe_registers(all: &Value) -> String {
    let mut text = String::new();
    for cpu in all.as_array().into_iter().flatten() {
        let number = |name: &str| cpu[name].as_u64().unwrap_or(0);
        let activity = match number("activity") {
            0 => "running",
            1 => "halted",
            2 => "in shutdown",
            3 => "waiting for SIPI",
            _ => "in MWAIT",
        };
        let _ = write!(
            text,
            "  CPU {}: {} {}, {activity}",
            number("cpu"),
            cpu["vendor"].as_str().unwrap_or("?"),
            cpu["mode"].as_str().unwrap_or("?"),
        );
        // QEMU counts none.
        if let Some(count) = cpu["icount"].as_u64() {
            let _ = write!(text, ", {count} instructions");
        }
        text.push('\n');
        for row in [
            ["rip", "rflags", "cr3", "cr2"],
            ["rax", "rbx", "rcx", "rdx"],
            ["rsi", "rdi", "rbp", "rsp"],
            ["r8", "r9", "r10", "r11"],
            ["r12", "r13", "r14", "r15"],
        ] {
            text.push_str("   ");
            for name in row {
                let _ = write!(text, " {name:>6}={:016x}", number(name));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_stop_is_shown_not_only_its_stack() {
        let mut log = String::new();
        for number in 0..100 {
            log += "[0 0] line ";
            log += &number.to_string();
            log.push('\n');
        }
        assert!(excerpt(&log).ends_with("line 99"));
        log += "[0 0] *** RULE here\n";
        log += &"[0 0] stack: 1\n".repeat(60);
        let text = excerpt(&log);
        assert!(text.contains("*** RULE here") && text.contains("line 99"));
    }

    #[test]
    fn registers_are_named_and_in_hexadecimal() {
        let value = serde_json::json!([{"cpu": 1, "vendor": "vmx", "mode": "root",
            "activity": 1, "icount": 7, "rip": 0xffff_f800_0000_1000_u64}]);
        let text = describe_registers(&value);
        assert!(text.contains("CPU 1: vmx root, halted, 7 instructions"));
        assert!(text.contains("rip=fffff80000001000"));
    }
}
