//! Tables of 4 KB leaves that were asked for lately, by region.
//!
//! A table of leaves, once in place, is never replaced and never moved, so what
//! is remembered here cannot become wrong: there is nothing to invalidate. Each
//! entry is one number, the region and the place of its table together, so that
//! any core may read and replace it without a lock.
//!
//! Root mode, and guest context before the launch.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Gpa, PageSize};
use crate::pool::Place;

/// Regions remembered; a region has one possible entry.
const REGIONS: usize = 64;

/// An entry without a region: no region has such a number.
const NOTHING: u64 = u64::MAX;

/// The tables of the regions used lately.
#[derive(Debug)]
pub(crate) struct Recent([AtomicU64; REGIONS]);

impl Recent {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(NOTHING) }; REGIONS])
    }

    /// The table of the region of `gpa`, if it is remembered.
    #[inline]
    pub(crate) fn get(&self, gpa: Gpa) -> Option<Place> {
        let noted = self.entry(gpa)?.load(Ordering::Relaxed);
        (noted >> Place::BITS == region(gpa)).then_some(Place::from_bits(noted))
    }

    /// Remembers the table of the region of `gpa`.
    pub(crate) fn put(&self, gpa: Gpa, place: Place) {
        if let Some(entry) = self.entry(gpa) {
            entry.store(region(gpa) << Place::BITS | place.bits(), Ordering::Relaxed);
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "modulo REGIONS")]
    fn entry(&self, gpa: Gpa) -> Option<&AtomicU64> {
        self.0.get(region(gpa) as usize % REGIONS)
    }
}

#[inline]
const fn region(gpa: Gpa) -> u64 {
    gpa.as_u64() >> PageSize::Size2M.bytes().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_put_is_found() {
        let recent = Recent::new();
        let place = Place::from_bits(0x73_4567);
        for gpa in [0, 0x1f_ffff, 0x20_0000, u64::MAX] {
            assert_eq!(recent.get(Gpa::new(gpa)), None);
        }
        recent.put(Gpa::new(0x12_3456_7890), place);
        assert_eq!(recent.get(Gpa::new(0x12_3440_0000)), Some(place));
        assert_eq!(recent.get(Gpa::new(0x12_345f_ffff)), Some(place));
        // Neighbours, and regions that share the entry.
        for gpa in [0x12_3460_0000, 0x12_343f_ffff, 0x12_3c40_0000, 0x3440_0000] {
            assert_eq!(recent.get(Gpa::new(gpa)), None, "{gpa:#x}");
        }
        let other = Place::from_bits(5);
        recent.put(Gpa::new(0x12_3c40_0000), other);
        assert_eq!(recent.get(Gpa::new(0x12_3c40_0000)), Some(other));
        assert_eq!(recent.get(Gpa::new(0x12_3440_0000)), None);
        // The last region of the reach, and the last place.
        let place = Place::from_bits(u64::MAX);
        recent.put(Gpa::new((1 << 48) - 1), place);
        assert_eq!(recent.get(Gpa::new((1 << 48) - 0x1000)), Some(place));
    }
}
