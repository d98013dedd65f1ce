//! What root mode counts, one page a core, in the region that both sides see.
//!
//! Root mode only adds; the driver only reads. The guest could falsify the
//! figures, so nothing is ever decided by them, but whether a core may be called at
//! all: who falsifies that can do no more than the crash that he can have anyway.

use core::sync::atomic::{AtomicU64, Ordering};

/// Basic exit reasons that have a counter of their own; higher ones share the
/// last.
pub const REASONS: usize = 80;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// One core's counters.
        #[repr(C, align(4096))]
        #[derive(Debug)]
        pub struct Counters {
            /// VM exits by basic reason.
            pub exits: [AtomicU64; REASONS],
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// A copy of counters, summed over cores.
        #[derive(Debug, Clone, Copy)]
        pub struct Totals {
            /// VM exits by basic reason.
            pub exits: [u64; REASONS],
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Totals {
            /// Nothing counted.
            #[must_use]
            pub const fn zero() -> Self {
                Self { exits: [0; REASONS], $($name: 0,)* }
            }

            /// Adds one core's counters.
            pub fn add(&mut self, counters: &Counters) {
                for (sum, counter) in self.exits.iter_mut().zip(&counters.exits) {
                    *sum += counter.load(Ordering::Relaxed);
                }
                $(self.$name += counters.$name.load(Ordering::Relaxed);)*
            }
        }
    };
}

counters! {
    /// NMIs that came as kicks.
    kicks_taken,
    /// Kicks sent to other cores.
    kicks_sent,
    /// NMIs of the guest's own that were passed on.
    nmis_passed,
    /// Invalidations of nested translations on this core.
    invalidations,
    /// Pages that became executable.
    fetch_flips,
    /// Pages that became writable.
    write_flips,
    /// Instructions stepped on the private path.
    steps,
    /// Simple stores to executable pages, carried out in root mode.
    emulated,
    /// Steps given up because the private path was overtaken.
    steps_cancelled,
    /// Entries filled on first access.
    fills,
    /// Violations that found nothing to do: another core had been faster.
    retries,
    /// Events re-injected because an exit interrupted their delivery.
    reinjected,
    /// Pages that are no longer watched.
    exempted,
    /// Violations that could not be answered for want of tables.
    exhausted,
    /// Kicks that were not acknowledged in time.
    unanswered,
    /// Entries that had to be repaired after a misconfiguration.
    misconfigured,
    /// Faults in root mode that ended in the guest's own exception.
    recovered,
    /// Exits whose reason is not known.
    unknown,
    /// 1: the core was let go to be reset by INIT, and is no guest any more.
    lost,
}

impl Counters {
    /// Adds one to a counter. Each is written by one core only, so no locked
    /// instruction is needed.
    #[inline]
    pub fn bump(counter: &AtomicU64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// Counts an exit.
    #[inline]
    pub fn exit(&self, reason: usize) {
        let slot = if reason < REASONS {
            reason
        } else {
            REASONS - 1
        };
        if let Some(counter) = self.exits.get(slot) {
            Self::bump(counter);
        }
    }
}
