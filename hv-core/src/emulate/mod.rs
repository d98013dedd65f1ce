//! Instructions that the processor hands to the hypervisor whether it wants them
//! or not, answered as the bare processor would: the rules are pure functions,
//! the privileged instruction itself is executed by the exit handler with a
//! fix-up for its fault.

pub mod cpuid;
pub mod cr;
pub mod length;
pub mod msr;
pub mod operand;
pub mod store;
pub mod xsetbv;
