//! `watch`: findings as they come.
//!
//! First those that nobody has read yet, then each new one. A finding is in the
//! log, synced, before it is printed.

use crate::args::Watch;
use crate::failure::Failure;
use crate::interrupt::{self, Until};
use crate::log::Log;
use crate::output::Output;
use crate::record::Record;
use crate::render::finding;
use crate::session::{Batch, Session};
use detector::wire::{Accounts, Finding, FindingFlags, State, WaitFlags};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Whether there were findings.
pub(super) fn run(watch: &Watch, json: bool, output: &Output) -> Result<bool, Failure> {
    interrupt::install();
    let until = Until::within(watch.timeout);
    let mut session = Session::open()?;
    let mut sink = Sink {
        log: open_log(watch)?,
        evidence: watch.evidence.as_deref(),
        json,
        output,
    };
    if let Some(folder) = sink.evidence {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::other(format!("{}: {error}", folder.display())))?;
    }
    let most = watch.count.unwrap_or(u64::MAX);
    let mut printed = 0;
    let mut after = 0;
    let mut caught_up = false;
    let mut last = None;
    let mut state = None;
    while printed < most && !until.over() {
        let flags = match (caught_up, watch.all) {
            (true, _) => WaitFlags::empty(),
            (false, true) => WaitFlags::NO_WAIT,
            (false, false) => WaitFlags::NO_WAIT | WaitFlags::UNDELIVERED,
        };
        let left = u32::try_from(most - printed).unwrap_or(0);
        let Some(Batch { reply, findings }) = session.wait(after, left, flags, until)? else {
            break;
        };
        if state.replace(reply.state) != Some(reply.state) {
            tell(reply.state);
        }
        for finding in &findings {
            sink.take(&mut session, finding)?;
            after = after.max(finding.seq);
            printed += 1;
        }
        if !caught_up && reply.remaining == 0 {
            caught_up = true;
            after = after.max(reply.accounts.findings);
        }
        last = Some(reply.accounts);
    }
    summary(printed, last.as_ref());
    Ok(printed > 0)
}

/// A watch without monitoring waits for something that cannot come yet.
fn tell(state: u32) {
    match State::from_raw(state) {
        Some(State::Stopped) => {
            eprintln!("Monitoring does not run; `hvdetect start` begins it. Waiting.");
        }
        Some(State::Failed) => {
            eprintln!("A core could not be given back; restart the machine.");
        }
        _ => {}
    }
}

fn open_log(watch: &Watch) -> Result<Option<Log>, Failure> {
    if watch.no_log {
        return Ok(None);
    }
    let path = crate::log::path(watch.log.as_deref());
    let opened = path.and_then(|path| {
        Log::append(&path).map_err(|e| Failure::other(format!("{}: {e}", path.display())))
    });
    match opened {
        Ok(log) => Ok(Some(log)),
        // The default is a service to the user, not a wish of his.
        Err(failure) if watch.log.is_none() => {
            eprintln!("hvdetect: no log is written: {}", failure.message);
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

struct Sink<'a> {
    log: Option<Log>,
    evidence: Option<&'a Path>,
    json: bool,
    output: &'a Output,
}

impl Sink<'_> {
    fn take(&mut self, session: &mut Session, finding: &Finding) -> Result<(), Failure> {
        let record = Record::from(finding);
        if let Some(log) = &mut self.log {
            log.write(&record)
                .map_err(|error| Failure::other(format!("the log: {error}")))?;
        }
        if finding.flags().contains(FindingFlags::EVIDENCE) {
            self.save_page(session, &record)?;
        }
        self.output.print(&if self.json {
            record.json() + "\n"
        } else {
            finding::short(&record, self.output.paint)
        })?;
        Ok(())
    }

    fn save_page(&self, session: &mut Session, record: &Record) -> Result<(), Failure> {
        let (Some(folder), Some(hash)) = (self.evidence, &record.sha256) else {
            return Ok(());
        };
        match session.evidence(record.seq)? {
            Some(page) => {
                let path = folder.join(format!("{hash}.bin"));
                fs::write(&path, &page[..])
                    .map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
            }
            None => eprintln!(
                "hvdetect: the page of finding {} is not kept any more.",
                record.seq
            ),
        }
        Ok(())
    }
}

fn summary(printed: u64, accounts: Option<&Accounts>) {
    // Writing to a String cannot fail.
    let noun = if printed == 1 { "finding" } else { "findings" };
    let mut text = format!("{printed} {noun}.");
    if let Some(accounts) = accounts {
        let dropped = accounts.dropped();
        if dropped > 0 {
            let _ = write!(
                text,
                " {dropped} events were dropped: {} (a core's ring full), {} (too many unread), \
                 {} (too many at once).",
                accounts.ring_full, accounts.queue_full, accounts.rate_limited
            );
        }
        if !accounts.balance() {
            text += " THE DRIVER'S ACCOUNTS DO NOT BALANCE.";
        }
    }
    eprintln!("{text}");
}
