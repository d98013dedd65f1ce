//! What all cores share in root mode: one private region, built before the first
//! core is taken over and read-only after that, but for atomics.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ept::addr::Hpa;
use ept::memtype::MtrrState;

use crate::backend::{Features, Nested};
use crate::monitor::Monitor;
use crate::percpu::Core;
use crate::ram::CurrentRam;
use crate::transition::TransitionLock;
use crate::{svm, vmx};

/// The most cores that can be taken over.
pub const MAX_CORES: usize = 256;

/// State of the hypervisor, shared by all cores in root mode.
#[expect(missing_debug_implementations, reason = "holds a trait object")]
pub struct Hypervisor {
    /// The hypercall secret of this load.
    pub secret: [u64; 2],
    /// Bounds of the driver image: hypercalls come from there.
    pub image: (u64, u64),
    /// What the processor can do.
    pub features: Features,
    /// What Intel's side shares.
    pub vmx: vmx::Shared,
    /// What AMD's side shares.
    pub svm: svm::Shared,
    /// Large leaves are emptied before they are split (the machine-check erratum
    /// on page-size changes).
    pub vacate: bool,
    /// Number of variable-range MTRRs.
    pub variable_ranges: u32,
    /// Root mode's CR3.
    pub host_cr3: u64,
    /// Linear address of root mode's IDT.
    pub idt: u64,
    /// The MSR bitmap or permission map.
    pub msr_bitmap: Hpa,
    /// The memory-type range registers.
    pub mtrr: MtrrState,
    /// The shared nested tables; present from before the launch.
    pub space: Option<Nested>,
    /// One change of a page's role at a time.
    pub transition: TransitionLock,
    /// Generation of rights: raised by each revocation.
    pub generation: AtomicU64,
    /// RAM of the machine, as it was at the start or was told since.
    pub ram: CurrentRam,
    /// The policy.
    pub monitor: Option<&'static dyn Monitor>,
    /// The cores' regions; the first `count` are valid.
    pub cores: [*const Core; MAX_CORES],
    /// Number of cores.
    pub count: usize,
    /// Root mode failed somewhere: pages are no longer watched.
    pub abandoned: AtomicBool,
}

// SAFETY: the raw pointers lead to the cores' regions, which are `Sync` and live
// as long as the hypervisor.
unsafe impl Sync for Hypervisor {}

impl Hypervisor {
    /// The cores' regions.
    pub fn cores(&self) -> impl Iterator<Item = &Core> {
        self.cores.iter().take(self.count).map(|core| {
            // SAFETY: the first `count` pointers are valid for as long as the
            // hypervisor is.
            unsafe { &**core }
        })
    }

    /// The nested tables.
    ///
    /// `None` only while the hypervisor is being put together.
    #[inline]
    #[must_use]
    pub fn nested(&self) -> Option<&Nested> {
        self.space.as_ref()
    }

    /// Stops watching: from now on every page that faults gets all rights.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }
}
