//! From events to findings, at `PASSIVE_LEVEL`.
//!
//! The driver drains the cores' rings into one [`Assembler`], which merges
//! repeats, gives each finding its number, names actor, victim and return
//! address, hashes and keeps the evidence page, and hands findings out to
//! readers. It owns all of that, reserved once in [`Assembler::new`]; afterwards
//! it allocates nothing, so that a flood cannot exhaust the pool.
//!
//! Not callable in root mode or above `PASSIVE_LEVEL`. No lock of its own: the
//! driver holds one around it, which the exit path never takes.
//!
//! Events are the same when kind, frame and the page of RIP are the same: they
//! are one finding with a count, read or not. Only what says something new is
//! another finding: other code in the page, another place written. Of those
//! there are at most a few for each; a page that writes itself, and one that a
//! module's file itself marks writable and executable, are told once.
//! [`Assembler::begin`] starts afresh: what an earlier monitoring found is found
//! again.
//!
//! Nothing is lost silently. Every event that root mode produced ends in exactly
//! one account (see [`Accounts`]): a finding delivered, a finding that still
//! waits, merged into another, or dropped for a stated cause: no room, too many
//! new findings at once (`bucket`), or [`verdict::still_holds`] says that it
//! meant nothing. When the queue is
//! full of findings nobody has read, the newest is dropped and the first ones
//! are kept: they show how an attack began.

mod bucket;
mod name;
mod write;

pub use self::name::ExportName;

use self::bucket::Bucket;
use self::name::Resolver;
use crate::event::{Event, Flags, Kind};
use crate::registry::View;
use crate::verdict;
use crate::wire::{
    self, Accounts, EvidenceReply, EvidenceRequest, Finding, FindingFlags, ImageChange, Message,
    NAME_ROOM, Place, State, TIMELINE_ROOM, WaitFlags, WaitReply, WaitRequest, wait_reply_bytes,
};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use sha2::{Digest, Sha256};
use zerocopy::{FromZeros, IntoBytes};

/// Findings kept for readers.
pub const FINDINGS_KEPT: usize = 256;

/// Evidence pages kept, those of the newest findings that have one.
pub const EVIDENCE_KEPT: usize = 64;

/// Image loads and unloads remembered.
const TIMELINE_KEPT: usize = 32;

/// Unloaded modules remembered.
const UNLOADED_KEPT: usize = 64;

/// Findings with the same kind, frame and page of RIP; after so many, more are
/// counted into the last.
const VARIANTS: usize = 8;

/// "Shortly before" a finding: one minute, in units of 100 ns.
const SHORTLY: u64 = 60 * 10_000_000;

const PAGE: usize = 4096;

/// A page of memory.
pub type Page = [u8; PAGE];

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is the finding with this number; parked readers should be answered.
    Found(u64),
    /// It was counted into the finding with this number.
    Merged(u64),
    /// Too many findings wait for a reader.
    Dropped,
    /// Too many new findings came at once.
    Limited,
    /// It meant nothing: the module had gone.
    Stale,
}

/// What a reader gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The reply, so many bytes at the start of the buffer.
    Ready(usize),
    /// There is nothing yet: keep the request and ask again after an event.
    Park,
    /// The buffer does not hold even one finding.
    TooSmall,
}

/// What happened to an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was loaded.
    Loaded,
    /// It was unloaded.
    Unloaded,
}

struct Entry {
    finding: Finding,
    delivered: bool,
    /// Monitoring has been started anew since, or its module has gone: nothing is
    /// merged into it.
    closed: bool,
}

/// Turns events into findings; see the module's text.
pub struct Assembler {
    entries: VecDeque<Entry>,
    limit: usize,
    evidence: EvidenceStore,
    timeline: VecDeque<ImageChange>,
    unloaded: VecDeque<ImageChange>,
    bucket: Bucket,
    accounts: Accounts,
}

impl Assembler {
    /// Reserves all memory; `None` if there is not enough.
    #[must_use]
    pub fn new() -> Option<Assembler> {
        Assembler::with_limits(FINDINGS_KEPT, EVIDENCE_KEPT)
    }

    /// As [`Assembler::new`], keeping so many findings (at least one) and pages.
    #[must_use]
    pub fn with_limits(findings: usize, pages: usize) -> Option<Assembler> {
        Some(Assembler {
            entries: reserved(findings.max(1))?,
            limit: findings.max(1),
            evidence: EvidenceStore::new(pages)?,
            timeline: reserved(TIMELINE_KEPT)?,
            unloaded: reserved(UNLOADED_KEPT)?,
            bucket: Bucket::FULL,
            accounts: Accounts::default(),
        })
    }

    /// Monitoring begins: repeats of what is kept from before are new again.
    pub fn begin(&mut self) {
        for entry in &mut self.entries {
            entry.closed = true;
        }
        self.unloaded.clear();
        self.bucket = Bucket::FULL;
    }

    /// Takes one event.
    ///
    /// `evidence` is the page as root mode saw it, `time` the event's time
    /// (100 ns since 1601, UTC), `view` the newest snapshot. `export` is asked
    /// for the export nearest before an offset in a module: (base, offset).
    pub fn push(
        &mut self,
        event: &Event,
        evidence: Option<&Page>,
        time: u64,
        view: &View<'_>,
        export: &mut dyn FnMut(u64, u32) -> Option<ExportName>,
    ) -> Outcome {
        let events = u64::from(event.count.max(1));
        self.accounts.produced += events;
        if !verdict::still_holds(view, event) {
            self.accounts.stale += events;
            return Outcome::Stale;
        }
        let hash: Option<[u8; 32]> = evidence.map(|page| Sha256::digest(page).into());
        if let Some(seq) = self.merge(event, evidence, hash.as_ref(), view) {
            self.accounts.merged += events;
            return Outcome::Merged(seq);
        }
        if !self.make_room() {
            self.accounts.queue_full += events;
            return Outcome::Dropped;
        }
        if !self.bucket.take(time) {
            self.accounts.rate_limited += events;
            return Outcome::Limited;
        }
        self.accounts.findings += 1;
        self.accounts.queued += 1;
        self.accounts.merged += events - 1;
        let seq = self.accounts.findings;
        let mut finding = plain(event, seq, time);
        match (evidence, hash) {
            (Some(page), Some(hash)) => {
                finding.flags |= FindingFlags::EVIDENCE.bits();
                finding.sha256 = hash;
                self.evidence.keep(seq, page);
            }
            (_, _) => self.accounts.no_evidence += 1,
        }
        let mut resolver = Resolver {
            view,
            unloaded: &self.unloaded,
            export,
            generation: event.generation,
        };
        resolver.name(event, &mut finding);
        self.tell_timeline(&mut finding);
        self.entries.push_back(Entry {
            finding,
            delivered: false,
            closed: false,
        });
        Outcome::Found(seq)
    }

    /// Counts an event into the finding that it repeats.
    fn merge(
        &mut self,
        event: &Event,
        evidence: Option<&Page>,
        hash: Option<&[u8; 32]>,
        view: &View<'_>,
    ) -> Option<u64> {
        let once = once_a_frame(event, view);
        let pages = &self.evidence;
        let mut newest = None;
        let mut variants = 0;
        for entry in self.entries.iter_mut().rev() {
            if entry.closed || !same_key(&entry.finding, event, once) {
                continue;
            }
            if repeats(&entry.finding, event, hash)
                || (!entry.delivered && write::join(&mut entry.finding, event, evidence, pages))
            {
                return Some(count(&mut entry.finding, event));
            }
            variants += 1;
            newest = newest.or(Some(entry));
        }
        let most = if once { 1 } else { VARIANTS };
        newest
            .filter(|_| variants >= most)
            .map(|entry| count(&mut entry.finding, event))
    }

    /// Whether a finding can be added; forgets the oldest that was read.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < self.limit {
            return true;
        }
        let Some(index) = self.entries.iter().position(|e| e.delivered) else {
            return false;
        };
        self.entries.remove(index).is_some()
    }

    fn tell_timeline(&self, finding: &mut Finding) {
        let since = finding.time.saturating_sub(SHORTLY);
        let recent = self
            .timeline
            .iter()
            .rev()
            .filter(|c| c.time >= since && c.time <= finding.time)
            .take(TIMELINE_ROOM);
        for (slot, change) in finding.timeline.iter_mut().zip(recent) {
            *slot = *change;
        }
    }

    /// Counts events that a core could not store because its ring was full.
    pub fn lost(&mut self, events: u64) {
        self.accounts.produced += events;
        self.accounts.ring_full += events;
    }

    /// Remembers that an image was loaded or unloaded.
    pub fn image(&mut self, change: Change, time: u64, name: &str, base: u64, size: u32) {
        if self.timeline.len() == TIMELINE_KEPT {
            self.timeline.pop_front();
        }
        let mut entry = ImageChange::new_zeroed();
        entry.time = time;
        entry.base = base;
        entry.size = size;
        entry.change = match change {
            Change::Loaded => ImageChange::LOADED,
            Change::Unloaded => ImageChange::UNLOADED,
        };
        entry.name_length = name::store(&mut entry.name, name.as_bytes());
        self.timeline.push_back(entry);
        if change == Change::Unloaded {
            self.close(base);
            if self.unloaded.len() == UNLOADED_KEPT {
                self.unloaded.pop_front();
            }
            self.unloaded.push_back(entry);
        }
    }

    /// The module at `base` has gone: what lies there later is something else.
    fn close(&mut self, base: u64) {
        for entry in &mut self.entries {
            let about = |place: &Place| place.module_length > 0 && place.base == base;
            entry.closed |= about(&entry.finding.victim) || about(&entry.finding.actor);
        }
    }

    /// Answers a reader into `out`, which may be the request's own buffer.
    ///
    /// All kept findings with a number above `request.after_seq`, as many as
    /// fit; they count as delivered from then on, unless it only peeks.
    pub fn wait(&mut self, request: &WaitRequest, state: State, out: &mut [u8]) -> Wait {
        let room = out.len().saturating_sub(wait_reply_bytes(0)) / size_of::<Finding>();
        if room == 0 {
            return Wait::TooSmall;
        }
        let flags = WaitFlags::from_bits_retain(request.flags);
        let wanted = |e: &Entry| {
            let undelivered = !(e.delivered && flags.contains(WaitFlags::UNDELIVERED));
            e.finding.seq > request.after_seq && undelivered
        };
        let waiting = self.entries.iter().filter(|e| wanted(e)).count();
        if waiting == 0 && !flags.contains(WaitFlags::NO_WAIT) {
            return Wait::Park;
        }
        let most = match request.max {
            0 => room,
            max => room.min(usize::try_from(max).unwrap_or(room)),
        };
        let count = waiting.min(most);
        let (head, body) = out.split_at_mut(wait_reply_bytes(0));
        let mut slots = body.chunks_exact_mut(size_of::<Finding>());
        for entry in self.entries.iter_mut().filter(|e| wanted(e)).take(count) {
            if let Some(slot) = slots.next() {
                slot.copy_from_slice(entry.finding.as_bytes());
                if !entry.delivered && !flags.contains(WaitFlags::PEEK) {
                    entry.delivered = true;
                    self.accounts.delivered += 1;
                    self.accounts.queued -= 1;
                }
            }
        }
        let mut reply = WaitReply::zeroed();
        reply.count = u32::try_from(count).unwrap_or(0);
        reply.state = state as u32;
        reply.remaining = (waiting - count) as u64;
        reply.oldest_seq = self.entries.front().map_or(0, |e| e.finding.seq);
        reply.accounts = self.accounts;
        head.copy_from_slice(reply.as_bytes());
        Wait::Ready(wait_reply_bytes(count))
    }

    /// Writes an [`EvidenceReply`] into `out`; `None` if it does not fit.
    ///
    /// The reply says so if the page was never kept or has been dropped.
    pub fn evidence(&self, request: &EvidenceRequest, out: &mut [u8]) -> Option<usize> {
        const HEAD: usize = size_of::<EvidenceReply>() - PAGE;
        let out = out.get_mut(..size_of::<EvidenceReply>())?;
        out.fill(0);
        let page = self.evidence.page(request.seq);
        let (head, body) = out.split_at_mut(HEAD);
        if let Some(page) = page {
            body.copy_from_slice(page);
        }
        let header = wire::header_of::<EvidenceReply>();
        let available = u32::from(page.is_some());
        let (to_header, rest) = head.split_at_mut(size_of::<wire::Header>());
        to_header.copy_from_slice(header.as_bytes());
        let (to_seq, rest) = rest.split_at_mut(8);
        to_seq.copy_from_slice(&request.seq.to_le_bytes());
        let (to_available, _) = rest.split_at_mut(4);
        to_available.copy_from_slice(&available.to_le_bytes());
        Some(size_of::<EvidenceReply>())
    }

    /// The accounts; they balance at any time.
    #[must_use]
    pub const fn accounts(&self) -> Accounts {
        self.accounts
    }
}

/// Whether a page is told once, whoever writes it and what: it is meant to be
/// written.
fn once_a_frame(event: &Event, view: &View<'_>) -> bool {
    match event.kind() {
        Some(Kind::SelfModifyingPage) => true,
        Some(Kind::ModuleCodeWrite) => verdict::is_writable_code(view, event.gpa),
        _ => false,
    }
}

/// Whether two events may be one finding.
fn same_key(finding: &Finding, event: &Event, any_rip: bool) -> bool {
    // The frame may have been another module's meanwhile.
    let known =
        event.kind() == Some(Kind::ModuleCodeWrite) && event.flags().contains(Flags::VICTIM_VA);
    finding.kind == event.kind
        && finding.gpa >> 12 == event.gpa >> 12
        && (any_rip || finding.rip >> 12 == event.rip >> 12)
        && (!known || finding.victim.address >> 12 == event.victim_va >> 12)
}

/// Whether an event says nothing that its finding does not say.
fn repeats(finding: &Finding, event: &Event, hash: Option<&[u8; 32]>) -> bool {
    if event.write_length > 0 || finding.write_length > 0 {
        return write::repeats(finding, event);
    }
    // A page that was not kept says nothing.
    let known = finding.flags().contains(FindingFlags::EVIDENCE);
    hash.is_none_or(|hash| known && *hash == finding.sha256)
}

fn count(finding: &mut Finding, event: &Event) -> u64 {
    finding.count = finding.count.saturating_add(u64::from(event.count.max(1)));
    finding.seq
}

fn reserved<T>(count: usize) -> Option<VecDeque<T>> {
    let mut queue = VecDeque::new();
    queue.try_reserve_exact(count).ok()?;
    Some(queue)
}

/// The pages of the newest findings, each in the slot of its number.
struct EvidenceStore {
    bytes: Vec<u8>,
    seqs: Vec<u64>,
}

impl EvidenceStore {
    fn new(pages: usize) -> Option<EvidenceStore> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(pages.checked_mul(PAGE)?).ok()?;
        bytes.resize(pages * PAGE, 0);
        let mut seqs = Vec::new();
        seqs.try_reserve_exact(pages).ok()?;
        seqs.resize(pages, 0);
        Some(EvidenceStore { bytes, seqs })
    }

    fn slot(&self, seq: u64) -> Option<usize> {
        let count = u64::try_from(self.seqs.len()).ok()?;
        usize::try_from(seq.checked_rem(count)?).ok()
    }

    fn keep(&mut self, seq: u64, page: &Page) {
        let Some(slot) = self.slot(seq) else {
            return;
        };
        if let Some(room) = self.bytes.get_mut(slot * PAGE..(slot + 1) * PAGE) {
            room.copy_from_slice(page);
            self.seqs[slot] = seq;
        }
    }

    fn page(&self, seq: u64) -> Option<&[u8]> {
        let slot = self.slot(seq)?;
        if seq == 0 || self.seqs.get(slot) != Some(&seq) {
            return None;
        }
        self.bytes.get(slot * PAGE..(slot + 1) * PAGE)
    }
}

/// The event's own facts, without names.
fn plain(event: &Event, seq: u64, time: u64) -> Finding {
    let mut finding = Finding::new_zeroed();
    finding.seq = seq;
    finding.time = time;
    finding.tsc = event.tsc;
    finding.count = u64::from(event.count.max(1));
    finding.kind = event.kind;
    finding.severity = event.severity;
    finding.cpl = event.cpl;
    finding.core = event.core;
    finding.generation = event.generation;
    finding.rip = event.rip;
    finding.gla = event.gla;
    finding.gpa = event.gpa;
    finding.cr3 = event.cr3;
    finding.rsp = event.rsp;
    finding.rflags = event.rflags;
    finding.process = event.process;
    finding.qualification = event.qualification;
    finding.gprs = event.gprs;
    finding.code = event.code;
    finding.code_bytes = u32::from(event.code_bytes.min(16));
    finding.write_offset = event.write_offset & 0xfff;
    finding.write_length = event.write_length;
    let used = event.write_bytes();
    finding.write_bytes = u32::try_from(used).unwrap_or(0);
    let mut flags = FindingFlags::empty();
    for (from, to) in [
        (Flags::GLA, FindingFlags::GLA),
        (Flags::GPRS, FindingFlags::GPRS),
        (Flags::STEPPED, FindingFlags::STEPPED),
        (Flags::LONG_MODE, FindingFlags::LONG_MODE),
        (Flags::AT_START, FindingFlags::AT_START),
        (Flags::BENIGN_CLASS, FindingFlags::BENIGN_CLASS),
    ] {
        flags.set(to, event.flags().contains(from));
    }
    if used > 0 && event.flags().contains(Flags::OLD) {
        flags |= FindingFlags::OLD;
        finding.old[..used].copy_from_slice(&event.old[..used]);
    }
    if used > 0 && event.flags().contains(Flags::NEW) {
        flags |= FindingFlags::NEW;
        finding.new[..used].copy_from_slice(&event.new[..used]);
    }
    finding.flags = flags.bits();
    finding
}

/// Whether a kind is about a write (its victim is known by frame).
const fn is_write(kind: Option<Kind>) -> bool {
    matches!(
        kind,
        Some(
            Kind::ModuleCodeWrite
                | Kind::ReadonlyDataWrite
                | Kind::SelfModifyingPage
                | Kind::Tamper
        )
    )
}

const _: () = assert!(NAME_ROOM <= u8::MAX as usize);

#[cfg(test)]
mod tests;
