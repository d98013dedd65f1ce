//! The restart drill: a processor is started anew under a thread that may be lost.
//!
//! PASSIVE_LEVEL, one at a time: the command thread of the lab calls it.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::hal::{clock, instr, processors};
use crate::ke::{affinity, irql, thread, wait};
use crate::ps;

static THERE: AtomicBool = AtomicBool::new(false);

/// Sits on its processor, at a level at which nothing else runs there, until the
/// processor is taken away from under it.
extern "C" fn sacrifice(number: usize) {
    // SAFETY: PASSIVE_LEVEL; an active processor.
    unsafe { affinity::KeSetSystemAffinityThreadEx(1 << number) };
    irql::raise(irql::CLOCK_LEVEL);
    THERE.store(true, Ordering::Release);
    loop {
        instr::pause();
    }
}

/// Restarts processor `number`, which is not 0; whether it came back.
pub(crate) fn restart(number: u32) -> bool {
    THERE.store(false, Ordering::Release);
    let Some(lost) = thread::create(ps::process::system(), sacrifice, number as usize) else {
        return false;
    };
    thread::start(lost);
    while !THERE.load(Ordering::Acquire) {
        wait::sleep(10_000);
    }
    // SAFETY: PASSIVE_LEVEL; processor 0 is always there.
    unsafe { affinity::KeSetSystemAffinityThreadEx(1) };
    clock::stall(20);
    let back = processors::restart(number);
    // SAFETY: PASSIVE_LEVEL; set above.
    unsafe { affinity::KeRevertToUserAffinityThread() };
    back
}
