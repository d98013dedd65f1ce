//! The host's page tables: four or five levels of 4 KB pages, built once at
//! PASSIVE_LEVEL, read by every core in root mode.
//!
//! They map the private copy of the driver image, the private and the shared
//! regions, each at the address that it has in the system's address space, and
//! nothing else: a stray pointer in root mode faults instead of reading the
//! guest. After start only the last-level entries of windows change, each by the
//! one core that owns the window.
//!
//! The tables themselves are a slice of our own; children are found by index,
//! never by dereferencing a physical address.

use core::sync::atomic::{AtomicU64, Ordering};

/// Present.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITABLE: u64 = 1 << 1;
/// PWT and PCD: PAT entry 3, uncached as the processor and Windows set it up.
pub const UNCACHED: u64 = 1 << 3 | 1 << 4;
/// Accessed and dirty, set in advance so that no walk writes.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// No execute.
pub const NO_EXECUTE: u64 = 1 << 63;

/// CR4.LA57: linear addresses have 57 bits, and tables a fifth level.
const LA57: u64 = 1 << 12;

const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const ENTRIES: usize = 512;

/// Root mode's CR4 from the one that the core runs with: what 64-bit code and XSETBV
/// need, none of the protections that concern user pages, no PCIDs.
#[must_use]
pub const fn cr4(running: u64) -> u64 {
    const PAE: u64 = 1 << 5;
    const MCE: u64 = 1 << 6;
    const OSFXSR: u64 = 1 << 9;
    const OSXMMEXCPT: u64 = 1 << 10;
    const OSXSAVE: u64 = 1 << 18;
    PAE | MCE | OSFXSR | OSXMMEXCPT | running & (OSXSAVE | LA57)
}

/// One page of page-table entries.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct HostTable([AtomicU64; ENTRIES]);

impl HostTable {
    fn entry(&self, index: usize) -> &AtomicU64 {
        &self.0[index & (ENTRIES - 1)]
    }
}

/// How many levels the tables have: as many as the system's own, because CR4.LA57
/// is the same in root mode (Intel SDM vol. 3, "5-Level Paging").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// 48-bit linear addresses.
    Four,
    /// 57-bit linear addresses.
    Five,
}

impl Depth {
    /// What CR4 says.
    #[must_use]
    pub const fn of(cr4: u64) -> Self {
        if cr4 & LA57 == 0 {
            Self::Four
        } else {
            Self::Five
        }
    }

    /// The lowest bit of the index into each level's table, but for the last level.
    const fn shifts(self) -> &'static [u32] {
        match self {
            Self::Four => &[39, 30, 21],
            Self::Five => &[48, 39, 30, 21],
        }
    }
}

/// A set of page tables under construction or in use.
#[derive(Debug)]
pub struct HostSpace<'a> {
    tables: &'a [HostTable],
    depth: Depth,
    base: u64,
    used: usize,
}

impl<'a> HostSpace<'a> {
    /// Takes zeroed, physically contiguous tables whose first lies at physical
    /// address `base`. `None` without any table.
    #[must_use]
    pub fn new(tables: &'a [HostTable], depth: Depth, base: u64) -> Option<Self> {
        (!tables.is_empty()).then_some(Self {
            tables,
            depth,
            base,
            used: 1,
        })
    }

    /// An upper bound for the tables that mapping a range of `bytes` bytes takes.
    #[must_use]
    pub const fn tables_for(bytes: usize, depth: Depth) -> usize {
        // A last-level table a 2 MB, one more for a range that is not aligned, and
        // two of each level above it in case the range crosses their borders. Of
        // the fourth of five levels all kernel addresses have one entry each.
        bytes / (2 << 20) + 2 + 4 + depth as usize
    }

    /// Physical address of the top table, for CR3.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.base
    }

    /// Tables in use.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    fn child(&self, entry: u64) -> Option<&'a HostTable> {
        let offset = (entry & ADDRESS).checked_sub(self.base)?;
        self.tables.get(usize::try_from(offset / 4096).ok()?)
    }

    /// Maps one 4 KB page. `false` when the tables are used up.
    #[must_use]
    pub fn map(&mut self, va: u64, pa: u64, flags: u64) -> bool {
        let Some(mut table) = self.tables.first() else {
            return false;
        };
        for level in self.depth.shifts() {
            let entry = table.entry(index(va, *level));
            let mut value = entry.load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                if self.used >= self.tables.len() {
                    return false;
                }
                value = (self.base + self.used as u64 * 4096) | PRESENT | WRITABLE | ACCESSED_DIRTY;
                self.used += 1;
                entry.store(value, Ordering::Relaxed);
            }
            let Some(next) = self.child(value) else {
                return false;
            };
            table = next;
        }
        table
            .entry(index(va, 12))
            .store((pa & ADDRESS) | flags | ACCESSED_DIRTY, Ordering::Release);
        true
    }

    /// The last-level entry of an address whose tables exist.
    #[must_use]
    pub fn entry(&self, va: u64) -> Option<&'a AtomicU64> {
        let mut table = self.tables.first()?;
        for level in self.depth.shifts() {
            let value = table.entry(index(va, *level)).load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                return None;
            }
            table = self.child(value)?;
        }
        Some(table.entry(index(va, 12)))
    }
}

fn index(va: u64, shift: u32) -> usize {
    ((va >> shift) & 511) as usize
}

/// The flags of a present, accessed page in these tables, by rights.
#[must_use]
pub const fn page_flags(writable: bool, executable: bool) -> u64 {
    let mut flags = PRESENT;
    if writable {
        flags |= WRITABLE;
    }
    if !executable {
        flags |= NO_EXECUTE;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn tables(count: usize) -> Vec<HostTable> {
        (0..count)
            .map(|_| HostTable([const { AtomicU64::new(0) }; ENTRIES]))
            .collect()
    }

    #[test]
    fn a_mapped_page_is_found_with_its_flags() {
        let tables = tables(8);
        let mut space = HostSpace::new(&tables, Depth::Four, 0x10_0000).unwrap();
        let va = 0xFFFF_F805_1234_5000;
        assert!(space.map(va, 0xABC_D000, PRESENT | WRITABLE | NO_EXECUTE));
        let entry = space.entry(va).unwrap().load(Ordering::Relaxed);
        assert_eq!(entry, 0x8000_0000_0ABC_D063);
        // As the processor walks it.
        let at = |table: usize, index: usize| tables[table].0[index].load(Ordering::Relaxed);
        assert_eq!(space.root(), 0x10_0000);
        assert_eq!(at(0, 496), 0x10_1063);
        assert_eq!(at(1, 20), 0x10_2063);
        assert_eq!(at(2, 145), 0x10_3063);
        assert_eq!(at(3, 325), entry);
        assert_eq!(space.used(), 4);
        assert_eq!(
            space.entry(va + 0x1000).unwrap().load(Ordering::Relaxed),
            0,
            "the neighbour stays unmapped"
        );
        assert!(space.entry(0x1000).is_none());
        assert!(space.map(va + 0x1000, u64::MAX, UNCACHED));
        let neighbour = space.entry(va + 0x1000).unwrap();
        assert_eq!(neighbour.load(Ordering::Relaxed), 0xF_FFFF_FFFF_F078);
        assert_eq!(space.used(), 4, "in the same tables");
    }

    #[test]
    fn with_five_levels_there_is_one_more() {
        assert_eq!(Depth::of(0x1000), Depth::Five);
        assert_eq!(Depth::of(!0x1000), Depth::Four);
        let tables = tables(8);
        let mut space = HostSpace::new(&tables, Depth::Five, 0x10_0000).unwrap();
        let va = 0xFF12_3805_1234_5000;
        assert!(space.map(va, 0xABC_D000, PRESENT));
        let at = |table: usize, index: usize| tables[table].0[index].load(Ordering::Relaxed);
        assert_eq!(at(0, 0x112), 0x10_1063);
        assert_eq!(at(1, 0x70), 0x10_2063);
        assert_eq!(at(2, 20), 0x10_3063);
        assert_eq!(at(3, 145), 0x10_4063);
        assert_eq!(at(4, 325), 0xABC_D061);
        assert_eq!(space.entry(va).unwrap().load(Ordering::Relaxed), 0xABC_D061);
        assert!(space.entry(va ^ 1 << 48).is_none());
        assert_eq!(cr4(0x1000) & 0x1000, 0x1000, "root mode runs with it");
    }

    #[test]
    fn the_bound_on_tables_holds() {
        let ranges = [
            (0xFFFF_F805_1234_5000_u64, 0x1000_usize, false),
            (0xFFFF_F805_3FFF_F000, 0x40_0000, false),
            (0xFFFF_FFFF_8000_0000 - 0x2000, 0x20_3000, false),
            // The worst places: across a border of the highest level.
            (0xFFFF_F880_0000_0000 - 0x1000, 0x2000, true),
            (0xFFFF_F880_0000_0000 - 0x1000, 0x40_2000, true),
        ];
        let depths = [Depth::Four, Depth::Five];
        let cases = ranges
            .iter()
            .flat_map(|range| depths.map(|depth| (*range, depth)));
        for ((va, bytes, all), depth) in cases {
            let count = 1 + HostSpace::tables_for(bytes, depth);
            let tables = tables(count);
            let mut space = HostSpace::new(&tables, depth, 0).unwrap();
            for page in 0..(bytes / 4096) as u64 {
                assert!(space.map(va + page * 4096, page * 4096, PRESENT));
            }
            assert_eq!(space.used() == count, all);
            assert!(space.entry(0x1000).is_none());
        }
    }

    #[test]
    fn rights_have_their_flags() {
        assert_eq!(page_flags(false, true), 1);
        assert_eq!(page_flags(true, true), 3);
        assert_eq!(page_flags(false, false), 1 << 63 | 1);
        assert_eq!(page_flags(true, false), 1 << 63 | 3);
    }

    #[test]
    fn running_out_of_tables_is_told() {
        let tables = tables(3);
        let mut space = HostSpace::new(&tables, Depth::Four, 0).unwrap();
        assert!(!space.map(0x1000, 0x1000, PRESENT));
        assert!(HostSpace::new(&[], Depth::Four, 0).is_none());
    }
}
