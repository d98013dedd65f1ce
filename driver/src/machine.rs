//! The hypervisor as the driver holds it.
//!
//! Everything here is called in guest context at PASSIVE_LEVEL, under the
//! `machine` lock.

use core::cell::RefCell;

use detector::event::Event;
use detector::finding::Page;
use detector::registry::View;
use detector::wire::{Features, Gaps, Notes, Pages, StartError, StartFlags, StatusReply};
use ept::addr::Pfn;
use hv_core::backend::Vendor;
use hv_core::error;
use hv_core::launch::{self, Options};
use hv_core::platform::Platform;
use hv_core::probe::Pretend;
use hv_core::svm;

use crate::monitor::{Rings, RootMonitor};
use crate::platform::NtPlatform;
use crate::status::Failure;

/// Takes one event and the page kept with it.
pub(crate) type Sink<'a> = dyn FnMut(&Event, Option<&Page>) + 'a;

/// Room for later, larger lists of modules: twice the first and so many bytes.
const SNAPSHOT_ROOM: usize = 256 << 10;

/// The running hypervisor.
pub(crate) struct Machine {
    hypervisor: launch::Machine<NtPlatform>,
    rings: RefCell<Rings>,
    /// A stop has failed: some cores have left, so that nobody may call root mode
    /// without knowing where he runs.
    broken: bool,
}

impl Machine {
    /// Takes all cores over. `snapshot` is the list of modules.
    pub(crate) fn start(
        platform: NtPlatform,
        flags: StartFlags,
        snapshot: &[u8],
    ) -> Result<Self, Failure> {
        let no_mbec = flags.contains(StartFlags::NO_MBEC);
        let pretend = Pretend {
            no_mtf: flags.contains(StartFlags::NO_MTF),
            no_mbec,
            svm: svm::caps::Pretend {
                no_nrip: flags.contains(StartFlags::NO_NEXT_RIP),
                no_flush_by_asid: flags.contains(StartFlags::NO_FLUSH_BY_ASID),
                no_gmet: no_mbec,
                ..svm::caps::Pretend::default()
            },
        };
        let view = View::new(snapshot).ok_or(Failure::new(StartError::NoModules))?;
        let cores = platform.cpu_count() as usize;
        let room = snapshot.len() * 2 + SNAPSHOT_ROOM;
        let mut rings = None;
        let mut code = view.frames().map(|frame| Pfn::new(frame.pfn));
        // SAFETY: PASSIVE_LEVEL, one start at a time (the `machine` lock); the
        // monitor touches memory that it is given here and constants only.
        let started = unsafe {
            launch::Machine::start(
                platform,
                Options { pretend },
                |memory, can| {
                    let (monitor, end) = RootMonitor::new(memory, cores, snapshot, room, can.mbec)?;
                    rings = Some(end);
                    Some(monitor)
                },
                &mut code,
            )
        };
        match (started, rings) {
            (Ok(hypervisor), Some(rings)) => Ok(Self {
                hypervisor,
                rings: RefCell::new(rings),
                broken: false,
            }),
            (Err((error, _)), _) => Err(error.into()),
            // Cannot be: without a monitor there is no start.
            (Ok(_), None) => Err(error::StartError::NoMemory.into()),
        }
    }

    /// Gives all cores back, hands the last events to `sink` and frees all
    /// memory. Returns how many events were lost to full rings since the last
    /// [`Machine::drain`].
    #[expect(
        clippy::result_large_err,
        reason = "the machine goes back as it came, and a stop must not allocate"
    )]
    pub(crate) fn stop(self, sink: &mut Sink<'_>) -> Result<u64, (Failure, Self)> {
        let Self {
            hypervisor, rings, ..
        } = self;
        let mut lost = 0;
        match hypervisor.stop(|| lost = drain(&rings, sink)) {
            Ok(_) => Ok(lost),
            Err((_, hypervisor)) => Err((
                Failure::new(StartError::LeaveFailed),
                Self {
                    hypervisor,
                    rings,
                    broken: true,
                },
            )),
        }
    }

    /// Makes a new list of modules current. `false` when it was refused.
    pub(crate) fn publish(&self, snapshot: &[u8]) -> bool {
        !self.broken && self.hypervisor.publish(snapshot)
    }

    /// Tells root mode of memory that was added to the machine.
    pub(crate) fn refresh_memory(&self) {
        if !self.broken {
            let _ = self.hypervisor.refresh_memory();
        }
    }

    /// Whether an event waits to be drained.
    pub(crate) fn waiting(&self) -> bool {
        self.rings.try_borrow().is_ok_and(|rings| rings.waiting())
    }

    /// Hands all events of all cores to `sink`. Returns how many were lost to
    /// full rings since the last time.
    pub(crate) fn drain(&self, sink: &mut Sink<'_>) -> u64 {
        drain(&self.rings, sink)
    }

    /// Fills in what the hypervisor knows: cores, features, gaps, exits, pages,
    /// tables, bytes, counters.
    pub(crate) fn describe(&self, reply: &mut StatusReply) {
        if self.broken {
            return;
        }
        let status = self.hypervisor.status();
        let can = status.features;
        reply.cores = status.cores;
        let mut features = Features::NESTED_PAGING | Features::LEAF_2M | Features::VPID;
        if can.vendor == Vendor::Intel {
            features |= Features::UNRESTRICTED | Features::VIRTUAL_NMI;
        }
        features.set(Features::INVEPT_SINGLE, can.flush_one);
        features.set(Features::NEXT_RIP, can.next_rip);
        features.set(Features::DECODE_ASSISTS, can.decode_assists);
        features.set(Features::LEAF_1G, can.leaf_1g);
        features.set(Features::MBEC, can.mbec);
        features.set(Features::MTF, can.mtf);
        reply.features = features.bits();
        let [writable, executable, stepping, exempt, hidden] = status.pages;
        let mut gaps = Gaps::from_bits_retain(reply.gaps);
        gaps.set(Gaps::USER_PAGES, !can.mbec);
        gaps.set(Gaps::CORE_MISSING, status.totals.lost > 0);
        gaps.set(Gaps::TABLES_EXHAUSTED, status.totals.exhausted > 0);
        gaps.set(Gaps::EXEMPT_PAGES, exempt > 0 || status.abandoned);
        reply.gaps = gaps.bits();
        let mut notes = Notes::empty();
        notes.set(Notes::FIRMWARE_LOCKED, status.firmware_locked);
        notes.set(Notes::GMET_UNTESTED, can.one_owner());
        reply.notes = notes.bits();
        reply.exits = status.totals.exits;
        reply.exits_other = status.totals.unknown;
        reply.pages = Pages {
            writable,
            executable,
            stepping,
            exempt,
            hidden,
        };
        reply.tables = status.tables_used;
        reply.tables_reserved = status.tables_used + status.tables_left;
        reply.table_bytes = status.tables_used * 4096;
        reply.core_bytes = status.core_bytes;
        reply.shared_bytes = status.shared_bytes;
        reply.invalidations = status.totals.invalidations;
        reply.kicks = status.totals.kicks_sent;
        reply.flips = status.totals.fetch_flips + status.totals.write_flips;
        reply.steps = status.totals.steps;
    }
}

fn drain(rings: &RefCell<Rings>, sink: &mut Sink<'_>) -> u64 {
    // Draining is not reentrant: the sink does not come back here.
    rings
        .try_borrow_mut()
        .map_or(0, |mut rings| rings.drain(sink))
}
