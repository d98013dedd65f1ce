//! Reaching every core: revoke, kick, wait for every acknowledgement.
//!
//! The nested tables have a generation. Who takes a right away raises it, kicks
//! the other cores by NMI and waits until each has said that it has invalidated
//! its translations since. An acknowledgement is a store to memory, never the
//! arrival of an NMI: NMIs coalesce. A core that waits for SIPI runs nothing and
//! invalidates before it runs again: it counts as quiescent.
//!
//! Called in root mode; [`revoke`] with the transition lock held, so that there
//! is one initiator at a time. A core that waits, for the lock or for
//! acknowledgements, serves ([`serve`]) meanwhile.

use core::sync::atomic::Ordering;

use crate::counters::Counters;
use crate::percpu::Core;
use crate::seeded::{self, Planted};
use crate::{apic, backend};

/// Rounds of waiting after which a core counts as lost. A core answers from its
/// NMI handler within a few hundred instructions; this is seconds.
const PATIENCE: u64 = 1 << 28;

/// Invalidates this core's translations if the tables changed since it last did,
/// and says so.
pub fn serve(core: &Core) {
    let asked = core.hypervisor().generation.load(Ordering::Acquire);
    if core.state.acknowledged.load(Ordering::Relaxed) < asked
        && seeded::is(Planted::SlowCore)
        && core.state.index.get() != 0
    {
        for _ in 0..100_000 {
            core::hint::spin_loop();
        }
    }
    acknowledge(core);
}

fn acknowledge(core: &Core) {
    let generation = core.hypervisor().generation.load(Ordering::Acquire);
    if core.state.acknowledged.load(Ordering::Relaxed) < generation {
        invalidate(core);
        core.state.step.stale.set(true);
        // Never backwards: a kick may have been answered in between.
        core.state
            .acknowledged
            .fetch_max(generation, Ordering::AcqRel);
    }
}

/// Invalidates everything derived from the shared tables on this core.
pub fn invalidate(core: &Core) {
    Counters::bump(&core.counters().invalidations);
    backend::invalidate(core);
}

/// Makes every core forget rights that have been taken away in the shared
/// tables. Returns when all have; the transition lock is held.
pub fn revoke(core: &Core) {
    let hypervisor = core.hypervisor();
    let generation = hypervisor.generation.fetch_add(1, Ordering::AcqRel) + 1;
    // The store of the table entry and of the generation come before the look at
    // the other cores' states (a core that has just become active looks at the
    // generation after it has said so).
    core::sync::atomic::fence(Ordering::SeqCst);
    if seeded::is(Planted::SkipKick) {
        serve(core);
        return;
    }
    for other in hypervisor.cores() {
        if core::ptr::eq(other, core) || !must_answer(other, generation) {
            continue;
        }
        if !other.state.kick.swap(true, Ordering::AcqRel) {
            Counters::bump(&core.counters().kicks_sent);
            apic::send_nmi(core, other.state.apic_id.get());
        }
    }
    serve(core);
    if seeded::is(Planted::SkipAcknowledge) {
        return;
    }
    for other in hypervisor.cores() {
        let mut rounds = 0;
        while must_answer(other, generation) {
            core::hint::spin_loop();
            rounds += 1;
            if rounds > PATIENCE {
                Counters::bump(&core.counters().unanswered);
                break;
            }
        }
    }
}

/// An NMI has arrived at this core. `false`: it is the guest's own.
#[must_use]
pub fn take_kick(core: &Core) -> bool {
    core.state.kick.swap(false, Ordering::AcqRel)
}

/// The answer to a kick that arrived in root mode: at once, unless a private path
/// may still hold what was revoked; then the step's end answers.
pub fn answer_in_root(core: &Core) {
    if core.state.stepping.load(Ordering::Acquire) {
        core.state.look_again.store(1, Ordering::Release);
    } else {
        // With NMIs blocked: the guest's and the next kick must not meet, so this
        // is as short as it can be.
        acknowledge(core);
    }
}

/// The core is a guest from now on, and must acknowledge.
pub fn join(core: &Core) {
    core.state.active.store(true, Ordering::SeqCst);
    invalidate(core);
}

/// The core waits for SIPI: it runs nothing, and acknowledges nothing.
pub fn sleep(core: &Core) {
    core.state.quiescent.store(true, Ordering::Release);
}

/// The core runs again. Rights may have been revoked while it was not asked.
pub fn wake(core: &Core) {
    core.state.quiescent.store(false, Ordering::SeqCst);
    invalidate(core);
}

/// The core leaves: it acknowledges nothing from now on, and after this no kick is
/// on its way to it.
pub fn retire(core: &Core) {
    let hypervisor = core.hypervisor();
    let held = hypervisor.transition.acquire(|| serve(core));
    core.state.active.store(false, Ordering::SeqCst);
    drop(held);
    // Kicks are sent under the lock, so none can be added now. One that is under
    // way arrives while NMIs are taken by root mode's own handler.
    let mut rounds = 0;
    while core.state.kick.load(Ordering::Acquire) && rounds < PATIENCE {
        core::hint::spin_loop();
        rounds += 1;
    }
}

fn must_answer(core: &Core, generation: u64) -> bool {
    core.state.active.load(Ordering::Acquire)
        && !core.state.quiescent.load(Ordering::Acquire)
        && core.state.acknowledged.load(Ordering::Acquire) < generation
}
