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

#[derive(Clone, Copy, Debug)]
struct Chunk<'a> {
    base: Hpa,
    tables: &'a [Table],
}

/// Tables waiting to be used, and the way from an [`Hpa`] to a used one.
#[derive(Debug)]
pub struct Pool<'a> {
    chunks: [Chunk<'a>; MAX_CHUNKS],
    capacity: usize,
    used: AtomicUsize,
}

impl<'a> Pool<'a> {
    /// A pool of physically contiguous chunks, each given by its first
    /// physical address and its tables, which are zero.
    ///
    /// `None` if there are more than [`MAX_CHUNKS`] chunks or one does not
    /// begin on a page boundary.
    #[must_use]
    pub fn new(chunks: &[(Hpa, &'a [Table])]) -> Option<Self> {
        let none = Chunk {
            base: Hpa::new(0),
            tables: &[],
        };
        let mut own = [none; MAX_CHUNKS];
        let mut capacity = 0_usize;
        if chunks.len() > MAX_CHUNKS {
            return None;
        }
        for (slot, &(base, tables)) in own.iter_mut().zip(chunks) {
            if !base.is_aligned(PageSize::Size4K) {
                return None;
            }
            *slot = Chunk { base, tables };
            capacity = capacity.checked_add(tables.len())?;
        }
        Some(Self {
            chunks: own,
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
        for chunk in &self.chunks {
            if let Some(table) = chunk.tables.get(index) {
                let offset = (index as u64) << PAGE_SHIFT;
                return Some((Hpa::new(chunk.base.as_u64().wrapping_add(offset)), table));
            }
            index = index.wrapping_sub(chunk.tables.len());
        }
        None
    }

    /// The table at physical address `hpa`, if it is one of ours.
    #[must_use]
    #[inline]
    pub fn find(&self, hpa: Hpa) -> Option<&'a Table> {
        self.chunks.iter().find_map(|chunk| {
            let offset = hpa.as_u64().checked_sub(chunk.base.as_u64())?;
            chunk
                .tables
                .get(usize::try_from(offset >> PAGE_SHIFT).ok()?)
        })
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
    fn refuses_what_it_cannot_hold() {
        let one = [Table::new()];
        assert!(Pool::new(&[(Hpa::new(0x1800), &one[..])]).is_none());
        assert!(Pool::new(&[(Hpa::new(0x1000), &one[..]); MAX_CHUNKS + 1]).is_none());
        assert!(Pool::new(&[]).unwrap().claim().is_none());
    }
}
