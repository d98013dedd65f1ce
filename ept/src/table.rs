//! One table: 512 entries of eight bytes, exactly one page.
//!
//! Walked by the processor at any time. An entry is therefore always written
//! whole, by one atomic store or exchange; a half-changed entry (write right
//! before read right, say) would be a misconfiguration on whichever core walks
//! it at that moment. Shared by reference between all cores and never freed
//! while the monitor runs.

use core::sync::atomic::{AtomicU64, Ordering};

/// Entries in a table.
pub const ENTRIES: usize = 512;

/// A page of 512 entries.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Table(pub [AtomicU64; ENTRIES]);

const _: () = assert!(size_of::<Table>() == 4096 && align_of::<Table>() == 4096);

impl Table {
    /// A table without any entry present.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

    /// The entry at `index`, taken modulo 512.
    #[must_use]
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.0
            .get(index % ENTRIES)
            .map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    /// Replaces the entry at `index`, taken modulo 512, in one store.
    #[inline]
    pub fn store(&self, index: usize, raw: u64) {
        if let Some(entry) = self.0.get(index % ENTRIES) {
            entry.store(raw, Ordering::Release);
        }
    }

    /// Replaces the entry at `index`, taken modulo 512, if it is still `old`.
    ///
    /// # Errors
    /// The value found instead of `old`; nothing was changed.
    pub fn compare_exchange(&self, index: usize, old: u64, new: u64) -> Result<(), u64> {
        match self.0.get(index % ENTRIES) {
            Some(entry) => entry
                .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ()),
            None => Err(0),
        }
    }

    /// Makes every entry absent. Only for a table that is not reachable yet.
    pub fn clear(&self) {
        for entry in &self.0 {
            entry.store(0, Ordering::Relaxed);
        }
    }

    /// Takes over all entries of `from`. Only for a table that no core walks.
    pub fn copy_from(&self, from: &Self) {
        for (to, from) in self.0.iter().zip(&from.0) {
            to.store(from.load(Ordering::Acquire), Ordering::Relaxed);
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchange_needs_the_expected_value() {
        let table = Table::new();
        table.store(7, 0x1007);
        assert_eq!(table.compare_exchange(7, 0x1003, 0x2003), Err(0x1007));
        assert_eq!(table.load(7), 0x1007);
        assert_eq!(table.compare_exchange(7, 0x1007, 0x2003), Ok(()));
        assert_eq!(table.load(7), 0x2003);
        assert_eq!(table.load(6) | table.load(8), 0);
    }
}
