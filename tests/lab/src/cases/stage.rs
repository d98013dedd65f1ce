//! Where a case plays: the tools and images, one machine, and the questions that
//! most cases ask it.

use crate::finding::{self, Finding};
use crate::images::Images;
use crate::machine::{Client, Look, Machine, Options};
use crate::session::{CommandOutput, Session};
use crate::setup::Tools;
use crate::witness::{self, Checkpoint, Testimony};
use anyhow::{Context, Result, bail, ensure};
use detector::wire::{self, Message as _, StartFlags, StartReply, StartRequest};
use serde_json::Value;
use std::process::Child;
use std::time::Duration;
use zerocopy::IntoBytes as _;

/// One case's place.
pub(crate) struct Stage<'a> {
    tools: &'a Tools,
    images: &'a Images,
    session: Session<'a>,
    /// The machine to be booted next.
    pub(crate) options: Options,
    machine: Option<Machine>,
    /// A test build of the driver is used; each start plants this mistake.
    pub(crate) planted: Option<u32>,
}

/// Longest life of a machine with a mistake in it: many of them hang.
const PLANTED_TIME_LIMIT: Duration = Duration::from_mins(1);

impl<'a> Stage<'a> {
    /// An empty place.
    pub(crate) fn new(tools: &'a Tools, images: &'a Images, options: Options) -> Self {
        Self {
            tools,
            images,
            session: Session::new(images),
            options,
            machine: None,
            planted: None,
        }
    }

    /// What was built.
    pub(crate) fn images(&self) -> &'a Images {
        self.images
    }

    /// Takes all words back that were added.
    pub(crate) fn forget_boot_words(&mut self) {
        self.session.forget_boot_words();
    }

    /// Adds words to MiniNT's command line.
    pub(crate) fn boot_words(&mut self, words: &str) {
        self.session.boot_words(words);
    }

    /// Boots the machine; one that ran before is gone.
    pub(crate) fn boot(&mut self) -> Result<&Machine> {
        self.machine = None;
        let mut options = self.options.clone();
        if self.planted.is_some() {
            options.time_limit = options.time_limit.min(PLANTED_TIME_LIMIT);
        }
        let machine = self.session.boot(options, Some(&self.tools.bochs))?;
        Ok(self.machine.insert(machine))
    }

    /// Boots the machine with the driver loaded, not started.
    pub(crate) fn boot_with_driver(&mut self) -> Result<Client> {
        let client = self.boot()?.client()?;
        client.start_service("hvdetect")?;
        Ok(client)
    }

    /// The running machine.
    pub(crate) fn machine(&self) -> Result<&Machine> {
        self.machine.as_ref().context("no machine is running")
    }

    /// Runs `hvdetect` and returns whatever it said.
    pub(crate) fn hvdetect(&self, arguments: &[&str]) -> Result<CommandOutput> {
        self.session.hvdetect(self.machine()?, arguments)
    }

    /// Begins `hvdetect` and does not wait for it.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Result<Child> {
        self.session.begin(self.machine()?, arguments)
    }

    /// Runs `hvdetect` where no machine is told to it.
    pub(crate) fn hvdetect_without_machine(&self, arguments: &[&str]) -> Result<CommandOutput> {
        self.session.hvdetect_alone(arguments)
    }

    /// Runs `hvdetect`, which must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<String> {
        if let (Some(planted), ["start", options @ ..]) = (self.planted, arguments) {
            let reply = self.start_planted(planted, options)?;
            ensure!(
                reply.error == 0,
                "the start failed: error {}, core {}, detail {:#x}",
                reply.error,
                reply.core,
                reply.detail
            );
            return Ok(String::new());
        }
        let output = self.hvdetect(arguments)?;
        if output.code != 0 {
            bail!(
                "`hvdetect {}` ended with exit code {}: {}{}",
                arguments.join(" "),
                output.code,
                output.stderr,
                output.stdout
            );
        }
        Ok(output.stdout)
    }

    /// Starts monitoring with a mistake planted; the driver is the test build. The
    /// options are those of `hvdetect start`.
    pub(crate) fn start_planted(&self, planted: u32, options: &[&str]) -> Result<StartReply> {
        let client = self.machine()?.client()?;
        let opened = client.request(&lab_link::Message::Open {
            access: 0xC000_0000,
            path: r"\\.\hvdetect",
        })?;
        ensure!(opened.status == 0, "open: {:#010x}", opened.status);
        let mut flags = StartFlags::empty();
        for option in options {
            flags |= match *option {
                "--no-mtf" => StartFlags::NO_MTF,
                "--no-mbec" => StartFlags::NO_MBEC,
                "--no-next-rip" => StartFlags::NO_NEXT_RIP,
                "--no-flush-by-asid" => StartFlags::NO_FLUSH_BY_ASID,
                other => bail!("start has no option {other}"),
            };
        }
        let mut request = StartRequest::zeroed();
        request.flags = flags.bits() | u64::from(planted) << 32;
        let reply = client.request(&lab_link::Message::Ioctl {
            handle: opened.information,
            code: wire::START,
            capacity: u32::try_from(size_of::<StartReply>())?,
            input: request.as_bytes(),
        })?;
        ensure!(reply.status == 0, "start: {:#010x}", reply.status);
        let (answer, _) = wire::reply::<StartReply>(&reply.output)
            .map_err(|error| anyhow::anyhow!("reply to start: {error:?}"))?;
        client.request(&lab_link::Message::Close {
            handle: opened.information,
        })?;
        Ok(answer)
    }

    /// Ends the machine, whatever it is doing.
    pub(crate) fn abandon(&mut self) {
        self.machine = None;
    }

    /// Runs `hvdetect`, which must fail with this code and say this.
    pub(crate) fn must_fail(&self, arguments: &[&str], code: i32, says: &str) -> Result<()> {
        let output = self.hvdetect(arguments)?;
        ensure!(
            output.code == code && output.stderr.contains(says),
            "`hvdetect {}`: expected exit code {code} and \"{says}\", got {} and \"{}\"",
            arguments.join(" "),
            output.code,
            output.stderr.trim()
        );
        Ok(())
    }

    /// Every finding that the driver keeps, waiting a little for late ones.
    pub(crate) fn findings(&self) -> Result<Vec<Finding>> {
        Finding::parse_lines(&self.findings_text()?)
    }

    /// All findings, JSON lines.
    pub(crate) fn findings_text(&self) -> Result<String> {
        self.must(&["watch", "--json", "--all", "--no-log", "--timeout", "0.3"])
    }

    /// The entry points that specimens have announced.
    pub(crate) fn entries(&self) -> Result<Vec<u64>> {
        Ok(finding::announced(&self.machine()?.console()))
    }

    /// `hvdetect status --json`.
    pub(crate) fn status(&self) -> Result<Value> {
        let text = self.must(&["status", "--json"])?;
        serde_json::from_str(text.trim()).context("status")
    }

    /// Stops the machine for a moment: every promise must hold, and every
    /// processor must be virtualized. `None` where the emulator lets nobody look.
    pub(crate) fn witness(&self) -> Result<Option<Testimony>> {
        const LOOKS: u32 = 20;
        let machine = self.machine()?;
        if !machine.options().emulator.offers(Look::Checkpoint) {
            return Ok(None);
        }
        let look = || -> Result<Testimony> {
            Ok(witness::examine(&Checkpoint::parse(machine.checkpoint()?)?))
        };
        let mut testimony = look()?;
        // Between two instructions of a guest that is stepped by its trap flag both
        // rights are there for the core that is in root mode; what stays is wrong.
        for _ in 0..LOOKS {
            let step = |text: &String| text.starts_with("writable and executable");
            if !testimony.in_root || !testimony.violations.iter().all(step) {
                break;
            }
            if testimony.violations.is_empty() {
                break;
            }
            testimony = look()?;
        }
        ensure!(
            testimony.virtualized == machine.options().cpus as usize,
            "the witness sees {} of {} processors virtualized",
            testimony.virtualized,
            machine.options().cpus
        );
        ensure!(
            testimony.violations.is_empty(),
            "the witness: {}",
            testimony.violations.join("\n")
        );
        ensure!(
            testimony.executable > 0 && testimony.hypervisor_frames > 0,
            "the witness found nothing to look at"
        );
        Ok(Some(testimony))
    }

    /// The witness must see no processor virtualized.
    pub(crate) fn witness_nothing(&self) -> Result<()> {
        let machine = self.machine()?;
        if !machine.options().emulator.offers(Look::Checkpoint) {
            return Ok(());
        }
        let testimony = witness::examine(&Checkpoint::parse(machine.checkpoint()?)?);
        ensure!(
            testimony.virtualized == 0,
            "{} processors are still virtualized",
            testimony.virtualized
        );
        Ok(())
    }

    /// Unloads the driver and shuts the machine down, which MiniNT allows only
    /// when nothing is left behind.
    pub(crate) fn end(&mut self) -> Result<()> {
        let machine = self.machine()?;
        machine.client()?.stop_service("hvdetect")?;
        machine.shut_down()?;
        self.machine = None;
        Ok(())
    }

    /// The state of the machine, for a report.
    pub(crate) fn report(&self) -> Option<String> {
        self.machine.as_ref().map(Machine::report)
    }
}
