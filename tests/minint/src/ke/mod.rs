//! The kernel proper: IRQL, traps, scheduling, waits, DPCs, timers, interrupts
//! between processors, bugchecks.
//!
//! One lock, the dispatcher lock ([`dispatcher`]), guards thread states, the ready
//! queues, dispatcher objects and timers. It is taken at DISPATCH_LEVEL and handed
//! over a context switch. DPC queues have locks of their own, taken with
//! interrupts off, because interrupt routines insert into them.

pub mod affinity;
pub mod bugcheck;
pub mod call;
pub mod callbacks;
pub mod device_queue;
pub mod dispatcher;
pub mod dpc;
pub mod event;
pub mod extended;
pub mod ipi;
pub mod irql;
pub mod list;
pub mod mutex;
pub mod nmi;
pub mod resource;
pub mod rundown;
pub mod semaphore;
pub mod shared_data;
pub mod spinlock;
pub mod spinlock_exports;
pub mod thread;
pub mod time;
pub mod timer;
pub mod trap;
pub mod wait;

/// Number of the processor that runs this.
pub fn current_cpu() -> u32 {
    crate::hal::cpu::current_number()
}

/// Running processors.
pub fn cpu_count() -> u32 {
    crate::hal::processors::count()
}
