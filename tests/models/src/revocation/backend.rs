//! The vendor's part of an invalidation: Intel's, at once.

use crate::revocation::instr;
use crate::revocation::percpu::Core;

/// Invalidates everything derived from the shared tables.
pub fn invalidate(_: &Core) {
    // SAFETY: as in hv-core.
    unsafe { instr::invept_single(instr::SHARED) };
}
