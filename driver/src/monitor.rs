//! Where the hypervisor meets the detector: the policy that root mode asks, and
//! the way its events take to the driver.
//!
//! [`RootMonitor`] runs in root mode: no NT call, no allocation, no panic. It
//! owns two private buffers for module snapshots, of which one is current, and
//! writes events and evidence pages into [`SharedRings`], memory that the guest
//! sees too. Root mode trusts nothing it reads there; see [`crate::ring`].
//!
//! [`Rings`] is the driver's end, used at PASSIVE_LEVEL by one thread at a time.
//!
//! Locking: the hypervisor calls the monitor under its transition lock, so there
//! is one writer at a time; each ring has one reader.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use detector::event::{Event, Flags, Kind, NO_EVIDENCE};
use detector::registry::View;
use detector::verdict::{self, Content, FetchFacts, FetchVerdict, Questions, WriteFacts};
use ept::addr::{Gpa, Gva};
use hv_core::launch::Memory;
use hv_core::monitor::{Difference, Fault, Guest, Monitor, PageRole};

use crate::evidence::{EvidencePage, States};
use crate::frame_set::FrameSet;
use crate::ring::{self, Key, Ledger};

/// Events that fit a core's ring.
const RING_EVENTS: usize = 32;
/// Evidence pages, for all cores together.
const EVIDENCE_PAGES: usize = 64;
/// Addresses from here up are the kernel's.
const KERNEL_HALF: u64 = 0xFFFF_8000_0000_0000;

type Ring = ring::Ring<Event, RING_EVENTS>;
type Page = EvidencePage<[u8; 4096]>;

/// The shared memory, as both sides know it.
#[derive(Clone, Copy)]
struct SharedRings {
    rings: *const Ring,
    cores: usize,
    states: *const States<EVIDENCE_PAGES>,
    pages: *const Page,
}

impl SharedRings {
    fn allocate(memory: &mut Memory<'_>, cores: usize) -> Option<Self> {
        Some(Self {
            rings: memory.shared(cores * size_of::<Ring>())?.va as *const Ring,
            cores,
            states: memory.shared(size_of::<States<EVIDENCE_PAGES>>())?.va
                as *const States<EVIDENCE_PAGES>,
            pages: memory.shared(EVIDENCE_PAGES * size_of::<Page>())?.va as *const Page,
        })
    }

    fn ring(&self, core: usize) -> Option<&Ring> {
        if core >= self.cores {
            return None;
        }
        // SAFETY: there is a ring for each core; the block lives as long as the
        // machine.
        let ring = unsafe { self.rings.add(core) };
        // SAFETY: as above; all its fields are atomics or cells.
        Some(unsafe { &*ring })
    }

    fn states(&self) -> &States<EVIDENCE_PAGES> {
        // SAFETY: the block lives as long as the machine; atomics only.
        unsafe { &*self.states }
    }

    fn page(&self, index: usize) -> Option<*const Page> {
        if index >= EVIDENCE_PAGES {
            return None;
        }
        // SAFETY: there are so many pages.
        Some(unsafe { self.pages.add(index) })
    }
}

/// A core's private part.
#[repr(C)]
struct CorePart {
    /// Number of the last event.
    sequence: AtomicU64,
    ledger: Ledger<RING_EVENTS>,
}

/// The policy, in root mode.
pub(crate) struct RootMonitor {
    shared: SharedRings,
    buffers: [*mut u8; 2],
    capacity: usize,
    current: AtomicUsize,
    cores: *const CorePart,
    /// Frames of the current snapshot that were written while their module's
    /// address did not lead to them: probably freed by an unload that the
    /// snapshot does not know yet. The first write was told.
    left: *const FrameSet,
    /// Frames of code that its file marks writable, told once.
    told: *const FrameSet,
    /// Frames that are nobody's code.
    anonymous: *const FrameSet,
    /// The snapshots, read; each of the buffer of its number.
    views: [Cell<View<'static>>; 2],
    /// Counts commits: what was alike before one is not alike after it.
    epoch: AtomicU64,
    separate_user: bool,
}

// SAFETY: buffers and views are written under the transition lock only, and read
// under it.
unsafe impl Sync for RootMonitor {}

/// Reads a snapshot.
///
/// # Safety
/// The buffer holds `length` bytes and is not written as long as the view is used.
unsafe fn read_view(base: *mut u8, length: usize) -> Option<View<'static>> {
    // SAFETY: the caller's promise.
    View::new(unsafe { core::slice::from_raw_parts(base, length) })
}

impl RootMonitor {
    /// Builds the policy with a first snapshot; `room` is the size of the largest
    /// later one, in bytes.
    pub(crate) fn new(
        memory: &mut Memory<'_>,
        cores: usize,
        snapshot: &[u8],
        room: usize,
        separate_user: bool,
    ) -> Option<(Self, Rings)> {
        let capacity = room.max(snapshot.len()).next_multiple_of(4096);
        let first = memory.private(capacity)?.va as *mut u8;
        let second = memory.private(capacity)?.va as *mut u8;
        // SAFETY: the buffer is at least as long as the snapshot.
        unsafe { core::ptr::copy_nonoverlapping(snapshot.as_ptr(), first, snapshot.len()) };
        let parts = memory.private(cores * size_of::<CorePart>())?.va as *const CorePart;
        let left = memory.private(size_of::<FrameSet>())?.va as *const FrameSet;
        let told = memory.private(size_of::<FrameSet>())?.va as *const FrameSet;
        let anonymous = memory.private(size_of::<FrameSet>())?.va as *const FrameSet;
        // SAFETY: the buffer is written again only when it is not the current one,
        // and read anew then.
        let view = unsafe { read_view(first, snapshot.len()) }?;
        let shared = SharedRings::allocate(memory, cores)?;
        let rings = Rings { shared };
        Some((
            Self {
                shared,
                buffers: [first, second],
                capacity,
                current: AtomicUsize::new(0),
                cores: parts,
                left,
                told,
                anonymous,
                views: [Cell::new(view), Cell::new(View::EMPTY)],
                epoch: AtomicU64::new(0),
                separate_user,
            },
            rings,
        ))
    }

    fn view_of(&self, index: usize) -> View<'_> {
        self.views.get(index).map_or(View::EMPTY, Cell::get)
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Acquire) & 1
    }

    fn view(&self) -> View<'_> {
        self.view_of(self.current())
    }

    fn left(&self) -> &FrameSet {
        // SAFETY: private memory that lives as long as the machine; atomics only.
        unsafe { &*self.left }
    }

    fn told(&self) -> &FrameSet {
        // SAFETY: as above.
        unsafe { &*self.told }
    }

    fn anonymous(&self) -> &FrameSet {
        // SAFETY: as above.
        unsafe { &*self.anonymous }
    }

    fn core(&self, index: usize) -> Option<&CorePart> {
        if index >= self.shared.cores {
            return None;
        }
        // SAFETY: there is a part for each core that has a ring.
        let part = unsafe { self.cores.add(index) };
        // SAFETY: as above; private memory that lives as long as the machine.
        Some(unsafe { &*part })
    }

    /// What makes two events one: kind, frame (or what else tells them apart),
    /// page of RIP, within one snapshot.
    fn key(&self, kind: Kind, what: u64, rip: Gva) -> Key {
        let epoch = self.epoch.load(Ordering::Relaxed);
        Key((kind as u64) << 52 | what, epoch << 52 ^ rip.as_u64() >> 12)
    }

    /// Counts an event like one that still waits, before it is described.
    fn repeats(&self, core: u32, key: Key) -> bool {
        let index = core as usize;
        match (self.shared.ring(index), self.core(index)) {
            (Some(ring), Some(core)) => ring.repeat(&core.ledger, key),
            (_, _) => false,
        }
    }

    fn record(
        &self,
        mut event: Event,
        key: Key,
        core: u32,
        written: Option<&Difference>,
        guest: &mut dyn Guest,
    ) -> bool {
        let index = core as usize;
        let (Some(ring), Some(core)) = (self.shared.ring(index), self.core(index)) else {
            return false;
        };
        event.sequence = core.sequence.load(Ordering::Relaxed) + 1;
        core.sequence.store(event.sequence, Ordering::Relaxed);
        ring.push(&core.ledger, key, || {
            event.evidence = self.keep_page(&event, written, guest);
            event
        })
    }

    /// Keeps the page as evidence, as it is after a write: a store that the
    /// hypervisor carries out is told before it is made.
    fn keep_page(&self, event: &Event, written: Option<&Difference>, guest: &mut dyn Guest) -> u32 {
        if event.gpa == 0 {
            return NO_EVIDENCE;
        }
        let gpa = Gpa::new(event.gpa);
        let pages = |index| self.shared.page(index);
        let kept = self.shared.states().keep(pages, |page: &mut [u8; 4096]| {
            guest.read_page(gpa, page) && {
                if let Some(written) = written {
                    lay_over(page, written);
                }
                true
            }
        });
        kept.unwrap_or(NO_EVIDENCE)
    }
}

/// Puts the bytes that were written where they belong.
fn lay_over(page: &mut [u8; 4096], written: &Difference) {
    let length = usize::from(written.length);
    let place = page.iter_mut().skip(written.offset.into()).take(length);
    for (byte, new) in place.zip(&written.new) {
        *byte = *new;
    }
}

/// What all events have in common.
fn describe(event: &mut Event, fault: &Fault, guest: &mut dyn Guest) {
    event.tsc = fault.tsc;
    event.rip = fault.rip.as_u64();
    event.gpa = fault.gpa.as_u64();
    event.cr3 = fault.cr3;
    event.rsp = fault.rsp.as_u64();
    event.rflags = fault.rflags;
    event.cpl = fault.cpl;
    event.core = fault.core;
    event.gprs = fault.gprs;
    event.mark(Flags::GPRS);
    if let Some(gla) = fault.gla {
        event.gla = gla.as_u64();
        event.mark(Flags::GLA);
    }
    if fault.long_mode {
        event.mark(Flags::LONG_MODE);
    }
    if let Some(value) = guest.read_u64(Gva::new(fault.rsp.as_u64()))
        && value >= KERNEL_HALF
    {
        event.return_address = value;
        event.mark(Flags::RETURN_ADDRESS);
    }
}

// SAFETY: nothing here calls the system, allocates, blocks or panics: indices are
// checked or masked, loops are bounded, memory is private, shared or the guest's
// through `Guest`.
unsafe impl Monitor for RootMonitor {
    fn role(&self, gpa: Gpa) -> PageRole {
        let pfn = gpa.pfn().as_u64();
        if self.anonymous().contains(pfn) || self.left().contains(pfn) || self.told().contains(pfn)
        {
            return PageRole::Anonymous;
        }
        if self.view().by_frame(pfn).is_some() {
            PageRole::ModuleCode
        } else {
            self.anonymous().insert(pfn);
            PageRole::Anonymous
        }
    }

    fn on_fetch(&self, fault: &Fault, guest: &mut dyn Guest) -> bool {
        let view = self.view();
        let rip = fault.rip.as_u64();
        let facts = FetchFacts {
            rip,
            gla: fault.gla.map_or(rip, Gva::as_u64),
            gpa: fault.gpa.as_u64(),
            cpl: fault.cpl,
            long_mode: fault.long_mode,
            mbec: self.separate_user,
            left: self.left().contains(fault.gpa.pfn().as_u64()),
            content: Content::Unknown,
            questions: Questions::MODULE | Questions::SECTION,
        };
        let FetchVerdict::Report(kind) = verdict::fetch(&view, &facts) else {
            return false;
        };
        let mut event = Event::new(kind);
        describe(&mut event, fault, guest);
        verdict::annotate(&view, &mut event);
        let key = self.key(kind, fault.gpa.pfn().as_u64(), fault.rip);
        self.record(event, key, fault.core, None, guest)
    }

    fn on_written(&self, fault: &Fault, difference: &Difference, guest: &mut dyn Guest) -> bool {
        let pfn = fault.gpa.pfn().as_u64();
        if self.told().contains(pfn) {
            return false;
        }
        // Most writes here repeat one that was told: they are only counted. A
        // write to a module's code is always told, for its bytes.
        let own = self.key(Kind::SelfModifyingPage, pfn, fault.rip);
        if fault.own_page && self.repeats(fault.core, own) {
            return true;
        }
        // A frame that its module has left is judged like any other.
        let left = self.left().contains(pfn);
        let view = if left { View::EMPTY } else { self.view() };
        let facts = WriteFacts {
            rip: fault.rip.as_u64(),
            gpa: fault.gpa.as_u64(),
            own_page: fault.own_page,
        };
        let Some(kind) = verdict::write(&view, &facts).kind() else {
            return false;
        };
        let mut event = Event::new(kind);
        describe(&mut event, fault, guest);
        event.record_write(
            difference.offset.into(),
            difference.length.into(),
            Some(&difference.old),
            Some(&difference.new),
        );
        event.mark(Flags::STEPPED);
        verdict::annotate(&self.view(), &mut event);
        if kind == Kind::ModuleCodeWrite {
            let home = verdict::home(&view, facts.gpa).and_then(|va| guest.translate(Gva::new(va)));
            if home.is_some_and(|home| home.pfn() == fault.gpa.pfn()) {
                event.mark(Flags::IN_PLACE);
            } else {
                self.left().insert(pfn);
            }
            if verdict::is_writable_code(&view, facts.gpa) {
                self.told().insert(pfn);
            }
        }
        let key = self.key(kind, pfn, fault.rip);
        self.record(event, key, fault.core, Some(difference), guest)
    }

    fn on_virtualization(&self, fault: &Fault, instruction: u16, guest: &mut dyn Guest) {
        let key = self.key(Kind::VirtualizationAttempt, instruction.into(), fault.rip);
        if self.repeats(fault.core, key) {
            return;
        }
        let mut event = Event::new(Kind::VirtualizationAttempt);
        describe(&mut event, fault, guest);
        event.gpa = guest.translate(fault.rip).map_or(0, Gpa::as_u64);
        event.qualification = instruction.into();
        verdict::annotate(&self.view(), &mut event);
        let _ = self.record(event, key, fault.core, None, guest);
    }

    fn forgotten(&self, each: &mut dyn FnMut(Gpa)) {
        let now = self.view();
        let mut current = now.frames().peekable();
        let before = self.view_of(self.current() ^ 1);
        // Both lists rise, so one walk over both tells.
        for frame in before.frames() {
            while current.next_if(|other| other.pfn < frame.pfn).is_some() {}
            let stays = current.peek().is_some_and(|other| other.pfn == frame.pfn);
            if !stays && let Some(pa) = frame.pfn.checked_mul(4096) {
                each(Gpa::new(pa));
            }
        }
    }

    fn receive(&self, index: u32, page: &[u8; 4096]) -> bool {
        let spare = self.current() ^ 1;
        let offset = index as usize * 4096;
        if offset >= self.capacity {
            return false;
        }
        let base = self.buffers[spare];
        // What the buffer held is read no more.
        if let Some(place) = self.views.get(spare) {
            place.set(View::EMPTY);
        }
        // SAFETY: the capacity is a multiple of 4096, so the whole page fits.
        let to = unsafe { base.add(offset) };
        // SAFETY: the spare buffer is read by nobody.
        unsafe { core::ptr::copy_nonoverlapping(page.as_ptr(), to, 4096) };
        true
    }

    fn commit(&self, bytes: u64) -> bool {
        let Ok(bytes) = usize::try_from(bytes) else {
            return false;
        };
        if bytes > self.capacity {
            return false;
        }
        let spare = self.current() ^ 1;
        let (Some(base), Some(place)) = (self.buffers.get(spare), self.views.get(spare)) else {
            return false;
        };
        // SAFETY: `bytes` is at most the capacity; the buffer is written again only
        // when it is not the current one, and read anew then.
        let Some(view) = (unsafe { read_view(*base, bytes) }) else {
            return false;
        };
        place.set(view);
        self.left().clear();
        self.told().clear();
        self.anonymous().clear();
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.current.store(spare, Ordering::Release);
        true
    }
}

/// The driver's end of the rings.
pub(crate) struct Rings {
    shared: SharedRings,
}

// SAFETY: one thread at a time drains; the memory is atomics and cells whose
// owner the ring's positions tell.
unsafe impl Send for Rings {}

impl Rings {
    /// Whether an event waits on any core.
    pub(crate) fn waiting(&self) -> bool {
        (0..self.shared.cores)
            .filter_map(|core| self.shared.ring(core))
            .any(Ring::waiting)
    }

    /// Hands every waiting event to `sink`, with its evidence page, core by core.
    /// Returns how many events root mode had to drop since the last call.
    pub(crate) fn drain(&mut self, sink: &mut dyn FnMut(&Event, Option<&[u8; 4096]>)) -> u64 {
        let mut dropped = 0;
        for core in 0..self.shared.cores {
            let Some(ring) = self.shared.ring(core) else {
                break;
            };
            // At most what fits, so that a flood cannot keep the reader here.
            for _ in 0..RING_EVENTS {
                let Some((mut event, more)) = ring.pop() else {
                    break;
                };
                event.count = event.count.max(1).saturating_add(more);
                let pages = |index| self.shared.page(index);
                let states = self.shared.states();
                states.take(event.evidence, pages, |page| sink(&event, page));
            }
            dropped += ring.lost();
        }
        dropped
    }
}
