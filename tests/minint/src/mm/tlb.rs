//! TLB shoot-down: after a mapping has lost a right or gone, no processor may keep
//! the old translation.
//!
//! IRQL at most DISPATCH_LEVEL with interrupts on, because the other processors are
//! waited for. Spans above [`FULL`] pages flush everything, global entries included.

use super::PAGE_SIZE;
use crate::hal::instr;
use crate::ke::ipi;

/// Pages above which one full flush is cheaper than single ones.
const FULL: usize = 64;
/// CR4.PGE.
const PGE: u64 = 1 << 7;

/// Drops the translations of these pages on every processor.
pub fn flush(address: usize, pages: usize) {
    flush_local(address, pages);
    ipi::flush_others(address, pages);
}

/// Drops the translations of these pages on this processor.
pub(crate) fn flush_local(address: usize, pages: usize) {
    if pages > FULL {
        flush_all_local();
        return;
    }
    for page in 0..pages {
        instr::invlpg(address + page * PAGE_SIZE);
    }
}

fn flush_all_local() {
    let were_on = instr::cli();
    let cr4 = instr::read_cr4();
    // SAFETY: PGE off and on again changes nothing but the TLB (Intel SDM volume 3, 5.10.4.1).
    unsafe { instr::write_cr4(cr4 ^ PGE) };
    // SAFETY: as above.
    unsafe { instr::write_cr4(cr4) };
    if were_on {
        // SAFETY: interrupts were on when the caller came.
        unsafe { instr::sti() };
    }
}
