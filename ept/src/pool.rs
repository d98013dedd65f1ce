//! The reserve of tables.
//!
//! Allocated by the driver before the launch, in a few physically contiguous
//! chunks, lent to root mode for the life of the monitor, and only ever handed
//! out: root mode cannot allocate, and a table that is reachable may be cached
//! by any core. A child table is found by looking its physical address up in
//! these chunks; no physical address is ever dereferenced, so a damaged entry
//! leads to `None` and not to a wild access.
//!
//! Claiming is one atomic exchange and needs no lock.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::addr::{Hpa, PAGE_SHIFT, PageSize};
use crate::table::Table;

/// The largest number of chunks; lookups are linear in it.
pub const MAX_CHUNKS: usize = 16;

/// The largest number of tables in a chunk: 4 GB of them.
pub const MAX_TABLES: usize = 1 << Place::INDEX_BITS;

/// The number of a table: its chunk and its index there, in [`Place::BITS`]
/// bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    const INDEX_BITS: u32 = 20;
    /// Width of a place as a number.
    pub(crate) const BITS: u32 = Self::INDEX_BITS + MAX_CHUNKS.trailing_zeros();

    /// Of a table that a pool holds: see [`MAX_TABLES`].
    #[inline]
    const fn new(chunk: usize, index: u64) -> Self {
        Self((chunk as u64) << Self::INDEX_BITS | index)
    }

    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    const fn chunk(self) -> usize {
        (self.0 >> Self::INDEX_BITS) as usize % MAX_CHUNKS
    }

    #[inline]
    const fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }
}

const _: () = assert!(MAX_CHUNKS.is_power_of_two());

/// Tables waiting to be used, and the way from an [`Hpa`] to a used one.
#[derive(Debug)]
pub struct Pool<'a> {
    bases: [Hpa; MAX_CHUNKS],
    chunks: [&'a [Table]; MAX_CHUNKS],
    count: usize,
    capacity: usize,
    used: AtomicUsize,
}

impl<'a> Pool<'a> {
    /// A pool of physically contiguous chunks, each given by its first
    /// physical address and its tables, which are zero.
    ///
    /// `None` if there are more than [`MAX_CHUNKS`] chunks, or one has more than
    /// [`MAX_TABLES`] tables or does not begin on a page boundary.
    #[must_use]
    pub fn new(chunks: &[(Hpa, &'a [Table])]) -> Option<Self> {
        let mut bases = [Hpa::new(0); MAX_CHUNKS];
        let mut own: [&[Table]; MAX_CHUNKS] = [&[]; MAX_CHUNKS];
        let mut capacity = 0_usize;
        if chunks.len() > MAX_CHUNKS {
            return None;
        }
        for ((slot, place), &(base, tables)) in own.iter_mut().zip(&mut bases).zip(chunks) {
            if !base.is_aligned(PageSize::Size4K) || tables.len() > MAX_TABLES {
                return None;
            }
            *slot = tables;
            *place = base;
            capacity = capacity.checked_add(tables.len())?;
        }
        Some(Self {
            bases,
            chunks: own,
            count: chunks.len(),
            capacity,
            used: AtomicUsize::new(0),
        })
    }

    /// Takes one table out of the pool for good; `None` when all are used.
    pub fn claim(&self) -> Option<(Hpa, &'a Table)> {
        let mut index = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                (used < self.capacity).then_some(used.wrapping_add(1))
            })
            .ok()?;
        for (base, tables) in self.bases.iter().zip(&self.chunks) {
            if let Some(table) = tables.get(index) {
                let offset = (index as u64) << PAGE_SHIFT;
                return Some((Hpa::new(base.as_u64().wrapping_add(offset)), table));
            }
            index = index.wrapping_sub(tables.len());
        }
        None
    }

    /// The table at physical address `hpa`, if it is one of ours.
    #[must_use]
    #[inline]
    pub fn find(&self, hpa: Hpa) -> Option<&'a Table> {
        self.at(self.place(hpa)?)
    }

    /// Where the table at physical address `hpa` lies, if it is one of ours.
    #[inline]
    pub(crate) fn place(&self, hpa: Hpa) -> Option<Place> {
        let chunks = self.bases.iter().zip(&self.chunks).enumerate();
        for (chunk, (base, tables)) in chunks.take(self.count) {
            let index = hpa.as_u64().wrapping_sub(base.as_u64()) >> PAGE_SHIFT;
            if index < tables.len() as u64 {
                return Some(Place::new(chunk, index));
            }
        }
        None
    }

    /// The table at a place that [`Self::place`] named.
    #[inline]
    pub(crate) fn at(&self, place: Place) -> Option<&'a Table> {
        self.chunks.get(place.chunk())?.get(place.index())
    }

    /// Tables handed out so far.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Tables in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tables not handed out yet.
    #[must_use]
    pub fn available(&self) -> usize {
        self.capacity.saturating_sub(self.used())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_each_table_once_and_finds_it_again() {
        let low = [const { Table::new() }; 3];
        let high = [const { Table::new() }; 2];
        let pool = Pool::new(&[
            (Hpa::new(0x7000_0000), &low[..]),
            (Hpa::new(0x1_0000_0000), &high[..]),
        ])
        .unwrap();
        assert_eq!(pool.capacity(), 5);
        let claimed: [_; 5] = core::array::from_fn(|_| pool.claim().unwrap());
        assert!(pool.claim().is_none());
        assert_eq!((pool.used(), pool.available()), (5, 0));
        let at = [
            0x7000_0000,
            0x7000_1000,
            0x7000_2000,
            0x1_0000_0000,
            0x1_0000_1000,
        ];
        for ((hpa, table), expected) in claimed.iter().zip(at) {
            assert_eq!(hpa.as_u64(), expected);
            assert!(core::ptr::eq(pool.find(*hpa).unwrap(), *table));
        }
        for foreign in [0, 0x6fff_f000, 0x7000_3000, 0xffff_f000, 0x1_0000_2000] {
            assert!(pool.find(Hpa::new(foreign)).is_none(), "{foreign:#x}");
        }
    }

    #[test]
    fn a_place_leads_back_to_its_table() {
        let low = [const { Table::new() }; 3];
        let high = [const { Table::new() }; 2];
        let (low_at, high_at) = (Hpa::new(0x7000_0000), Hpa::new(0x1_0000_0000));
        let pool = Pool::new(&[(low_at, &low[..]), (high_at, &high[..])]).unwrap();
        for (base, tables) in [(low_at, &low[..]), (high_at, &high[..])] {
            for (index, table) in (0_u64..).zip(tables) {
                let hpa = Hpa::new(base.as_u64() + index * 0x1000);
                let place = pool.place(hpa).unwrap();
                // Bits above a place are not its own.
                let noted = Place::from_bits(place.bits() | 1 << Place::BITS);
                assert_eq!(noted, place);
                assert!(core::ptr::eq(pool.at(noted).unwrap(), table));
            }
        }
        // Chunks that touch are two all the same.
        let next = Hpa::new(0x7000_3000);
        let pool = Pool::new(&[(low_at, &low[..]), (next, &high[..])]).unwrap();
        assert!(core::ptr::eq(pool.find(next).unwrap(), &raw const high[0]));
        for bits in [3, 2 | 1 << 20, 2 << 20, u64::MAX] {
            assert!(pool.at(Place::from_bits(bits)).is_none(), "{bits:#x}");
        }
        let last = Place::new(MAX_CHUNKS - 1, MAX_TABLES as u64 - 1);
        assert_eq!(last, Place::from_bits(u64::MAX));
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        let one = [Table::new()];
        assert!(Pool::new(&[(Hpa::new(0x1800), &one[..])]).is_none());
        assert!(Pool::new(&[(Hpa::new(0x1000), &one[..]); MAX_CHUNKS + 1]).is_none());
        assert!(Pool::new(&[]).unwrap().claim().is_none());
    }
}
