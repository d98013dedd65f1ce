//! The hypervisor as the rest of the driver sees it: started, fed with module
//! snapshots, drained, asked how it is, stopped.
//!
//! PASSIVE_LEVEL only. `control` holds the one [`Hypervisor`] under its lock;
//! starting and stopping are serialized there, draining is the drain thread's.

use detector::registry::View;
use detector::wire::{Features, Gaps, Pages, StartError, StartFlags, StatusReply, Vendor};
use hv_core::error::{self, Step};
use hv_core::instr::VmFail;
use hv_core::launch::{Machine, Options};
use hv_core::platform::Platform;
use hv_core::vmx::caps::Pretend;

use crate::monitor::{Rings, RootMonitor};
use crate::platform::NtPlatform;

/// Room for later, larger snapshots: twice the first and this many bytes.
const SNAPSHOT_ROOM: usize = 256 << 10;

/// Why it did not start or stop, for the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What is wrong.
    pub(crate) error: StartError,
    /// Which core, `u32::MAX` for none.
    pub(crate) core: u32,
    /// The VM-instruction error, or which step.
    pub(crate) detail: u64,
}

/// The running hypervisor.
pub(crate) struct Hypervisor {
    machine: Machine<NtPlatform>,
}

impl Hypervisor {
    /// Takes over all cores. `snapshot` is the module registry that verdicts are
    /// given by from the first moment.
    ///
    /// # Errors
    /// Why not; the machine is as before.
    pub(crate) fn start(
        platform: NtPlatform,
        flags: StartFlags,
        snapshot: &[u8],
    ) -> Result<(Self, Rings), Failure> {
        let pretend = Pretend {
            no_mtf: flags.contains(StartFlags::NO_MTF),
            no_mbec: flags.contains(StartFlags::NO_MBEC),
        };
        let Some(view) = View::new(snapshot) else {
            return Err(Failure {
                error: StartError::NoModules,
                core: u32::MAX,
                detail: 0,
            });
        };
        let cores = platform.cpu_count() as usize;
        let room = snapshot.len() * 2 + SNAPSHOT_ROOM;
        let mut rings = None;
        let mut code = view
            .frames()
            .map(|frame| ept::addr::Pfn::new(frame.pfn));
        // SAFETY: PASSIVE_LEVEL, serialized by `control`; the monitor touches its
        // own memory only.
        let started = unsafe {
            Machine::start(
                platform,
                Options { pretend },
                |memory| {
                    let (monitor, end) =
                        RootMonitor::new(memory, cores, snapshot, room, !pretend.no_mbec)?;
                    rings = Some(end);
                    Some(monitor)
                },
                &mut code,
            )
        };
        match (started, rings) {
            (Ok(machine), Some(rings)) => Ok((Self { machine }, rings)),
            (Err((error, _)), _) => Err(failure(error)),
            // A machine whose monitor was never built does not start.
            (Ok(_), None) => Err(failure(error::StartError::NoMemory)),
        }
    }

    /// Gives all cores back.
    ///
    /// # Errors
    /// A core could not be reached: the hypervisor is still there.
    pub(crate) fn stop(self) -> Result<(), (Failure, Self)> {
        match self.machine.stop() {
            Ok(_) => Ok(()),
            Err((error, machine)) => Err((
                Failure {
                    error: StartError::LeaveFailed,
                    ..failure(error)
                },
                Self { machine },
            )),
        }
    }

    /// Makes a new snapshot the one that verdicts are given by. `false` when root
    /// mode refuses it (too large).
    pub(crate) fn publish(&self, snapshot: &[u8]) -> bool {
        self.machine.publish(snapshot)
    }

    /// Fills in what the hypervisor knows of itself.
    pub(crate) fn status(&self, reply: &mut StatusReply) {
        let status = self.machine.status();
        let controls = status.controls;
        reply.vendor = Vendor::Intel as u32;
        reply.cores = status.cores;
        let mut features = Features::NESTED_PAGING
            | Features::LEAF_2M
            | Features::VPID
            | Features::INVEPT_SINGLE
            | Features::UNRESTRICTED
            | Features::VIRTUAL_NMI;
        features.set(Features::LEAF_1G, controls.ept_1g);
        features.set(Features::MBEC, controls.mbec);
        features.set(Features::MTF, controls.mtf);
        reply.features = features.bits();
        let [writable, executable, stepping, exempt, hidden] = status.pages;
        let mut gaps = Gaps::empty();
        gaps.set(Gaps::USER_PAGES, !controls.mbec);
        gaps.set(Gaps::TABLES_EXHAUSTED, status.totals.exhausted > 0);
        gaps.set(Gaps::EXEMPT_PAGES, exempt > 0 || status.abandoned);
        reply.gaps = gaps.bits();
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

fn failure(error: error::StartError) -> Failure {
    use error::StartError as Cause;
    let plain = |error| Failure {
        error,
        core: u32::MAX,
        detail: 0,
    };
    match error {
        Cause::UnknownVendor => plain(StartError::VendorUnsupported),
        Cause::HypervisorPresent => plain(StartError::HypervisorPresent),
        Cause::NoVmx => plain(StartError::NoVirtualization),
        Cause::LockedOff | Cause::UnequalFirmware => plain(StartError::VirtualizationLockedOff),
        Cause::VmxInUse => plain(StartError::VirtualizationInUse),
        Cause::NoEpt => plain(StartError::NoEpt),
        Cause::MissingControl | Cause::ShadowStacks => plain(StartError::MissingControl),
        Cause::UnknownRequiredControl => plain(StartError::UnknownRequiredControl),
        Cause::Fred => plain(StartError::Fred),
        Cause::Cores => plain(StartError::TooManyCores),
        Cause::NoMemory | Cause::Tables => plain(StartError::NoMemory),
        Cause::MemoryMap => plain(StartError::MemoryTypes),
        Cause::Image => plain(StartError::NoModules),
        Cause::Unreachable { core } => Failure {
            error: StartError::CoreFailed,
            core,
            detail: 0,
        },
        Cause::Core { core, step, fail } => Failure {
            error: if step == Step::Launch {
                StartError::EntryFailed
            } else {
                StartError::CoreFailed
            },
            core,
            detail: match fail {
                VmFail::Invalid => 0,
                VmFail::Valid(number) => number.into(),
            },
        },
    }
}
