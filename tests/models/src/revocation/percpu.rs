//! What a core owns: the hypervisor's fields of the same names, and the
//! hardware's.

use std::cell::Cell;

use crate::atomics::{AtomicBool, AtomicU32, AtomicU64};
use crate::revocation::counters::Counters;
use crate::revocation::guest::Rights;
use crate::revocation::hypervisor::Hypervisor;

/// Pages of the machine.
pub const PAGES: usize = 2;

/// A step under way.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "as in hv-core")]
pub struct StepState {
    pub pages: Cell<[Option<usize>; 2]>,
    pub count: Cell<usize>,
    pub stale: Cell<bool>,
}

/// The state that cores talk through.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "as in hv-core")]
pub struct CoreState {
    pub look_again: AtomicU32,
    pub index: Cell<u32>,
    pub apic_id: Cell<u32>,
    pub active: AtomicBool,
    pub quiescent: AtomicBool,
    pub kick: AtomicBool,
    pub acknowledged: AtomicU64,
    pub stepping: AtomicBool,
    pub step: StepState,
}

/// The processor.
#[derive(Debug, Default)]
pub struct Hardware {
    /// An NMI that has not been taken yet.
    pub nmi: AtomicBool,
    /// Translations cached from the shared tables.
    pub shared_cache: Cell<[Option<Rights>; PAGES]>,
    /// Translations cached from the private path.
    pub private_cache: Cell<[Option<Rights>; PAGES]>,
    /// The private path's entries.
    pub private: Cell<[Rights; PAGES]>,
    /// Interrupts strike at each access in root mode.
    pub interruptible: Cell<bool>,
    /// The private path is in use.
    pub on_private: Cell<bool>,
}

/// A core.
#[derive(Debug)]
pub struct Core {
    /// Shared state.
    pub state: CoreState,
    /// The processor.
    pub hardware: Hardware,
    hypervisor: Cell<*const Hypervisor>,
    counters: Counters,
}

impl Core {
    /// A core with this number.
    #[must_use]
    pub fn new(number: u32) -> Self {
        let state = CoreState::default();
        state.index.set(number);
        state.apic_id.set(number);
        Self {
            state,
            hardware: Hardware::default(),
            hypervisor: Cell::new(std::ptr::null()),
            counters: Counters::default(),
        }
    }

    /// Tells the core what it belongs to.
    pub fn belong_to(&self, hypervisor: &Hypervisor) {
        self.hypervisor.set(hypervisor);
    }

    /// The hypervisor that the core belongs to.
    #[must_use]
    pub fn hypervisor(&self) -> &Hypervisor {
        // SAFETY: set before the threads are made; they end before it does.
        unsafe { &*self.hypervisor.get() }
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
