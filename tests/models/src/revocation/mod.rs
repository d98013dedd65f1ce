//! Revocation × step × stop.
//!
//! A few cores run short guest programs on a few pages. Hardware is as lazy as
//! the manuals allow: a core caches each translation that it has walked until it
//! is told to drop it, an interrupt arrives at any later moment, memory is weak.
//! What the model checks is loom's question, whether two accesses may race:
//!
//! * A guest's write to a page, its fetch from it, and the hypervisor's look at
//!   it are plain accesses to one cell. A core that uses a right after the
//!   revoker has got its acknowledgements races with the revoker's look.
//! * A fetch demands the version that was looked at last.
//! * An acknowledgement that never comes, or two cores that wait for each other,
//!   exhaust loom's bound on the length of a run.
//!
//! [`shootdown`] and [`transition`] are the hypervisor's own sources. `exits` has
//! what its exit and NMI handlers do with them, reduced to what concerns other
//! cores; it follows `hv-core/src/violation.rs`, `vmx/exit.rs`,
//! `host/exceptions.rs` and `hypercall.rs`, which leave what is delicate to
//! `shootdown`.

pub mod apic;
pub mod backend;
pub mod counters;
pub mod exits;
pub mod guest;
pub mod hypervisor;
pub mod instr;
pub mod percpu;
pub mod scenarios;
pub mod seeded;

/// The hypervisor's own.
#[allow(clippy::pedantic, reason = "a genuine source")]
pub mod shootdown {
    include!(concat!(env!("OUT_DIR"), "/shootdown.rs"));
}

/// The hypervisor's own.
#[allow(clippy::pedantic, reason = "a genuine source")]
pub mod transition {
    include!(concat!(env!("OUT_DIR"), "/transition.rs"));
}
