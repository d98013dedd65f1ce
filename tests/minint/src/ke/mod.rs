//! The kernel proper: IRQL, traps, scheduling, waits, DPCs, timers, interrupts
//! between processors, bugchecks.

pub mod bugcheck;
pub mod irql;
pub mod spinlock;

/// Number of the processor that runs this.
pub fn current_cpu() -> u32 {
    0
}
