//! Where the hypervisor meets the detector: the policy that root mode asks, and
//! the way its events take to the driver.
//!
//! [`RootMonitor`] runs in root mode: no NT call, no allocation, no panic. It
//! owns two private buffers for module snapshots, of which one is current, and
//! writes events and evidence pages into [`SharedRings`], memory that the guest
//! sees too. Root mode trusts nothing it reads there: a ring position is reduced
//! to the ring's size, a sequence number is kept in private memory.
//!
//! [`Rings`] is the driver's end, used at PASSIVE_LEVEL by the one drain thread.
//!
//! Locking: the hypervisor calls the monitor under its transition lock, so there
//! is one writer at a time; each ring has one reader.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use detector::event::{Event, Flags, NO_EVIDENCE};
use detector::registry::View;
use detector::verdict::{self, Content, FetchFacts, FetchVerdict, Questions, WriteFacts};
use ept::addr::{Gpa, Gva};
use hv_core::launch::Memory;
use hv_core::monitor::{Difference, Fault, Guest, Monitor, PageRole};

/// Events that fit a core's ring.
const RING_EVENTS: usize = 32;
/// Evidence pages, for all cores together.
const EVIDENCE_PAGES: usize = 64;
/// Addresses from here up are the kernel's.
const KERNEL_HALF: u64 = 0xFFFF_8000_0000_0000;

/// One core's ring.
#[repr(C, align(4096))]
struct Ring {
    head: AtomicU64,
    tail: AtomicU64,
    lost: AtomicU64,
    /// What the reader has been told of `lost`.
    told: AtomicU64,
    slots: [UnsafeCell<Event>; RING_EVENTS],
}

/// An evidence page and whether it holds one (1) or is free (0).
#[repr(C, align(4096))]
struct EvidencePage(UnsafeCell<[u8; 4096]>);

/// State of the evidence pages, and events that went without one.
#[repr(C, align(4096))]
struct EvidenceStates {
    used: [AtomicU32; EVIDENCE_PAGES],
    missed: AtomicU64,
}

/// The shared memory, as both sides know it.
#[derive(Clone, Copy)]
struct SharedRings {
    rings: *const Ring,
    cores: usize,
    states: *const EvidenceStates,
    pages: *const EvidencePage,
}

impl SharedRings {
    fn allocate(memory: &mut Memory<'_>, cores: usize) -> Option<Self> {
        Some(Self {
            rings: memory.shared(cores * size_of::<Ring>())?.va as *const Ring,
            cores,
            states: memory.shared(size_of::<EvidenceStates>())?.va as *const EvidenceStates,
            pages: memory
                .shared(EVIDENCE_PAGES * size_of::<EvidencePage>())?
                .va as *const EvidencePage,
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

    fn states(&self) -> &EvidenceStates {
        // SAFETY: the block lives as long as the machine; atomics only.
        unsafe { &*self.states }
    }

    fn page(&self, index: usize) -> Option<*mut [u8; 4096]> {
        if index >= EVIDENCE_PAGES {
            return None;
        }
        // SAFETY: there are so many pages.
        let page = unsafe { self.pages.add(index) };
        // SAFETY: as above.
        Some(unsafe { (*page).0.get() })
    }
}

/// The policy, in root mode.
pub(crate) struct RootMonitor {
    shared: SharedRings,
    buffers: [*mut u8; 2],
    capacity: usize,
    current: AtomicUsize,
    length: AtomicUsize,
    sequence: *const AtomicU64,
    separate_user: bool,
}

// SAFETY: the buffers are written under the transition lock only.
unsafe impl Sync for RootMonitor {}

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
        let sequence = memory.private(cores * size_of::<AtomicU64>())?.va as *const AtomicU64;
        let shared = SharedRings::allocate(memory, cores)?;
        let rings = Rings { shared };
        Some((
            Self {
                shared,
                buffers: [first, second],
                capacity,
                current: AtomicUsize::new(0),
                length: AtomicUsize::new(snapshot.len()),
                sequence,
                separate_user,
            },
            rings,
        ))
    }

    fn view(&self) -> View<'_> {
        let index = self.current.load(Ordering::Acquire) & 1;
        let length = self.length.load(Ordering::Acquire).min(self.capacity);
        let base = self.buffers[index];
        // SAFETY: the buffer holds `capacity` bytes and is not written while it is
        // the current one.
        let bytes = unsafe { core::slice::from_raw_parts(base, length) };
        View::new(bytes).unwrap_or(View::EMPTY)
    }

    fn record(&self, mut event: Event, fault: &Fault, guest: &mut dyn Guest) -> bool {
        let core = fault.core as usize;
        let Some(ring) = self.shared.ring(core) else {
            return false;
        };
        // SAFETY: there is a number for each core that has a ring.
        let sequence = unsafe { self.sequence.add(core) };
        // SAFETY: as above; private memory that lives as long as the machine.
        let sequence = unsafe { &*sequence };
        let number = sequence.load(Ordering::Relaxed) + 1;
        sequence.store(number, Ordering::Relaxed);
        let head = ring.head.load(Ordering::Relaxed);
        let tail = ring.tail.load(Ordering::Acquire);
        if head.wrapping_sub(tail) >= RING_EVENTS as u64 {
            ring.lost.fetch_add(1, Ordering::Release);
            return false;
        }
        event.sequence = number;
        event.evidence = self.keep_page(fault.gpa, guest);
        let Some(slot) = ring.slots.get((head % RING_EVENTS as u64) as usize) else {
            return false;
        };
        // SAFETY: slots between tail and head + 1 are the writer's.
        unsafe { slot.get().write(event) };
        ring.head.store(head.wrapping_add(1), Ordering::Release);
        true
    }

    fn keep_page(&self, gpa: Gpa, guest: &mut dyn Guest) -> u32 {
        let states = self.shared.states();
        for (index, state) in (0..).zip(&states.used) {
            if state
                .compare_exchange(0, 2, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            let Some(page) = self.shared.page(index as usize) else {
                break;
            };
            // SAFETY: the page was free and has just been claimed for this event.
            let page = unsafe { &mut *page };
            if guest.read_page(gpa, page) {
                state.store(1, Ordering::Release);
                return index;
            }
            state.store(0, Ordering::Release);
            break;
        }
        states.missed.fetch_add(1, Ordering::Relaxed);
        NO_EVIDENCE
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
        if self.view().by_frame(gpa.pfn().as_u64()).is_some() {
            PageRole::ModuleCode
        } else {
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
            content: Content::Unknown,
            questions: Questions::MODULE,
        };
        let FetchVerdict::Report(kind) = verdict::fetch(&view, &facts) else {
            return false;
        };
        let mut event = Event::new(kind);
        describe(&mut event, fault, guest);
        verdict::annotate(&view, &mut event);
        self.record(event, fault, guest)
    }

    fn on_written(&self, fault: &Fault, difference: &Difference, guest: &mut dyn Guest) -> bool {
        let view = self.view();
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
        verdict::annotate(&view, &mut event);
        self.record(event, fault, guest)
    }

    fn receive(&self, index: u32, page: &[u8; 4096]) -> bool {
        let spare = (self.current.load(Ordering::Acquire) & 1) ^ 1;
        let offset = index as usize * 4096;
        if offset >= self.capacity {
            return false;
        }
        let base = self.buffers[spare];
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
        let spare = (self.current.load(Ordering::Acquire) & 1) ^ 1;
        // SAFETY: `bytes` is at most the capacity; the buffer is read by nobody.
        let data = unsafe { core::slice::from_raw_parts(self.buffers[spare], bytes) };
        if View::new(data).is_none() {
            return false;
        }
        self.length.store(bytes, Ordering::Release);
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
            .any(|ring| ring.head.load(Ordering::Acquire) != ring.tail.load(Ordering::Relaxed))
    }

    /// Hands every waiting event to `sink`, with its evidence page, core by core.
    /// Returns how many events root mode had to drop since the last call.
    pub(crate) fn drain(&mut self, sink: &mut dyn FnMut(&Event, Option<&[u8; 4096]>)) -> u64 {
        let mut dropped = 0;
        for core in 0..self.shared.cores {
            let Some(ring) = self.shared.ring(core) else {
                break;
            };
            let head = ring.head.load(Ordering::Acquire);
            let mut tail = ring.tail.load(Ordering::Relaxed);
            while tail != head {
                if let Some(slot) = ring.slots.get((tail % RING_EVENTS as u64) as usize) {
                    // SAFETY: slots between tail and head are the reader's.
                    let event = unsafe { slot.get().read() };
                    self.deliver(&event, sink);
                }
                tail = tail.wrapping_add(1);
                ring.tail.store(tail, Ordering::Release);
            }
            let lost = ring.lost.load(Ordering::Acquire);
            dropped += lost.wrapping_sub(ring.told.swap(lost, Ordering::Relaxed));
        }
        dropped
    }

    fn deliver(&self, event: &Event, sink: &mut dyn FnMut(&Event, Option<&[u8; 4096]>)) {
        let index = event.evidence as usize;
        let states = self.shared.states();
        let filled = states
            .used
            .get(index)
            .filter(|state| state.load(Ordering::Acquire) == 1);
        let (Some(state), Some(page)) = (filled, self.shared.page(index)) else {
            sink(event, None);
            return;
        };
        // SAFETY: a filled page is the reader's until it is freed below.
        sink(event, Some(unsafe { &*page }));
        state.store(0, Ordering::Release);
    }
}
