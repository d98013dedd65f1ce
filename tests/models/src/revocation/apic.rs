//! Sending a kick: the interrupt is latched at its target until it is taken.

use crate::atomics::Ordering;
use crate::revocation::percpu::Core;

/// Latches an NMI at the core with this identifier; one that is latched already
/// takes it in.
pub fn send_nmi(core: &Core, target: u32) {
    let number = usize::try_from(target).expect("a core's number");
    let cores = &core.hypervisor().cores;
    cores[number].hardware.nmi.swap(true, Ordering::AcqRel);
}
