//! The emulator as a child process: started in the run directory, ended with
//! its owner.
//!
//! The kernel kills it when the thread that started it dies (`setpriv
//! --pdeathsig`, of util-linux), the owner when it drops it, and the machine's
//! watchdog when its time is over. The thread that starts an emulator must
//! therefore live as long as the machine.

use super::options::{CpuidChange, Emulator, Options};
use super::{bochsrc, qemu, qmp};
use crate::setup::Bochs;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Exit code of an emulator that found a processor in the shutdown state.
pub(crate) const EXIT_SHUTDOWN_STATE: i32 = 125;

/// A running emulator. Clones name the same process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    directory: PathBuf,
    emulator: Emulator,
}

/// Starts the emulator in `directory`, where `rom.bin` and `image.bin` lie, and
/// connects to its second serial line.
pub(crate) fn start(
    options: &Options,
    bochs: Option<&Bochs>,
    directory: &Path,
) -> Result<(Process, TcpStream)> {
    // The port is free now; should another take it first, the emulator ends at
    // once and another port is tried.
    let mut last = None;
    for _ in 0..5 {
        let port = free_port()?;
        let process = spawn(options, bochs, directory, port)?;
        match process.connect(port) {
            Ok(stream) => return Ok((process, stream)),
            Err(error) => {
                process.kill();
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made")))
}

fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a loopback port")?;
    Ok(probe.local_addr()?.port())
}

/// Changed answers of CPUID, as the instrumentation reads them.
fn changes(changes: &[CpuidChange]) -> String {
    let one = |change: &CpuidChange| {
        let CpuidChange {
            function,
            register,
            keep,
            set,
        } = change;
        format!("{function:x} {register:x} {keep:x} {set:x}")
    };
    changes.iter().map(one).collect::<Vec<_>>().join(";")
}

fn spawn(options: &Options, bochs: Option<&Bochs>, directory: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    match options.emulator {
        Emulator::Bochs => {
            let Some(bochs) = bochs else {
                bail!("Bochs is not set up");
            };
            fs::write(directory.join("bochsrc"), bochsrc::compose(options, port))?;
            drop(fs::remove_file(directory.join("control")));
            command
                .arg(&bochs.program)
                .args(["-q", "-f", "bochsrc"])
                .env("HVDETECT_LAB_CONTROL", "control")
                .env(
                    "HVDETECT_LAB_COUNT_FRAMES",
                    if options.count_frames { "1" } else { "0" },
                )
                .env("HVDETECT_LAB_CPUID", changes(&options.cpuid));
        }
        Emulator::Bochs2 => {
            fs::write(directory.join("bochsrc"), bochsrc::compose(options, port))?;
            // The packaged build starts in its debugger.
            fs::write(directory.join("debugger"), "c\n")?;
            command.args([
                "/usr/bin/bochs-bin",
                "-q",
                "-f",
                "bochsrc",
                "-rc",
                "debugger",
            ]);
        }
        Emulator::Qemu => {
            drop(fs::remove_file(directory.join(qemu::MONITOR)));
            command
                .arg("qemu-system-x86_64")
                .args(qemu::arguments(options, port));
        }
    }
    let output = File::create(directory.join("emulator.log"))?;
    let child = command
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start the emulator (setpriv)")?;
    Ok(Process {
        child: Arc::new(Mutex::new(child)),
        directory: directory.to_owned(),
        emulator: options.emulator,
    })
}

impl Process {
    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to the serial line as soon as the emulator listens.
    fn connect(&self, port: u16) -> Result<TcpStream> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(stream) = TcpStream::connect(address) {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            if let Some(status) = self.ended() {
                bail!(
                    "the emulator ended at once ({status}):\n{}",
                    crate::progress::last_lines(&self.log(), 15)
                );
            }
            if Instant::now() > limit {
                bail!("the emulator does not listen on its serial port");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The exit status, once it has ended.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Waits for its end, at most this long.
    pub(crate) fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let limit = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() > limit {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        let mut child = self.child();
        drop(child.kill());
        drop(child.wait());
    }

    /// What the emulator itself said, both on its terminal and in its log.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| {
            fs::read(self.directory.join(name))
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default()
        };
        format!("{}{}", read("bochs.log"), read("emulator.log"))
    }

    /// Registers of every processor, as an array of objects.
    pub(crate) fn registers(&self, limit: Duration) -> Result<serde_json::Value> {
        match self.emulator {
            Emulator::Qemu => qmp::registers(&self.directory.join(qemu::MONITOR), limit),
            Emulator::Bochs | Emulator::Bochs2 => self.control("registers", limit),
        }
    }

    /// Asks our instrumentation one question; the answer is one line of JSON.
    pub(crate) fn control(&self, command: &str, limit: Duration) -> Result<serde_json::Value> {
        if self.emulator != Emulator::Bochs {
            bail!("{} has no instrumentation", self.emulator.name());
        }
        let stream = UnixStream::connect(self.directory.join("control"))
            .context("connect to the emulator's control socket")?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        (&stream).write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(&stream)
            .read_line(&mut line)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    anyhow::anyhow!("the emulator does not answer")
                }
                _ => error.into(),
            })?;
        serde_json::from_str(&line).with_context(|| format!("answer to `{command}`"))
    }
}

/// A sentence about how an emulator ended.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(EXIT_SHUTDOWN_STATE), _) => {
            "a processor reached the shutdown state (triple fault)".to_owned()
        }
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
