//! Translating the guest's linear addresses through the guest's page tables.
//!
//! Pure: physical memory is read through a closure that refuses what is not RAM.
//! The tables are the guest's and may be hostile: every step masks, nothing is
//! trusted, at most five reads are made. Intel SDM vol. 3, "4-Level Paging and
//! 5-Level Paging". Legacy 32-bit and PAE paging are not walked: kernel code of
//! this system is 64-bit, and a caller gets `None`.

use ept::addr::{Gpa, Gva};

/// A translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Every level allows user-mode access.
    pub user: bool,
    /// Every level allows writes.
    pub writable: bool,
    /// No level forbids execution.
    pub executable: bool,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Walks from `cr3`. `five_levels` is CR4.LA57. `read` gives the quadword at a
/// guest-physical address, or `None` when that is no RAM.
pub fn translate(
    cr3: u64,
    five_levels: bool,
    gva: Gva,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Option<Translation> {
    let va = gva.as_u64();
    let top = if five_levels { 57 } else { 48 };
    // Canonical: all bits from the sign bit up are equal.
    #[expect(clippy::cast_possible_wrap, reason = "sign extension is meant")]
    let sign = (va as i64) >> (top - 1);
    if sign != 0 && sign != -1 {
        return None;
    }
    let mut table = cr3 & ADDRESS;
    let (mut user, mut writable, mut executable) = (true, true, true);
    let mut shift = top - 9;
    loop {
        let index = va >> shift & 511;
        let entry = read(table + index * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        user &= entry & USER != 0;
        writable &= entry & WRITABLE != 0;
        executable &= entry & NO_EXECUTE == 0;
        let leaf = shift == 12 || (entry & LARGE != 0 && shift <= 30);
        if leaf {
            let offset = (1_u64 << shift) - 1;
            let base = entry & ADDRESS & !offset;
            return Some(Translation {
                gpa: Gpa::new(base | va & offset),
                user,
                writable,
                executable,
            });
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn map(va: u64, leaf_shift: u32, entry: u64) -> BTreeMap<u64, u64> {
        let mut memory = BTreeMap::new();
        let mut table = 0x1000;
        let mut shift = 39;
        while shift > leaf_shift {
            memory.insert(table + (va >> shift & 511) * 8, (table + 0x1000) | 7);
            table += 0x1000;
            shift -= 9;
        }
        memory.insert(table + (va >> shift & 511) * 8, entry);
        memory
    }

    #[test]
    fn each_page_size_is_found() {
        let va = 0xFFFF_F805_1234_5678;
        for (shift, large) in [(12, 0), (21, LARGE), (30, LARGE)] {
            let memory = map(va, shift, 0x1_4000_0000 | PRESENT | WRITABLE | large);
            let found = translate(0x1000, false, Gva::new(va), |at| memory.get(&at).copied());
            let found = found.unwrap();
            assert_eq!(found.gpa.as_u64(), 0x1_4000_0000 | va & ((1 << shift) - 1));
            assert!(found.writable && found.executable && !found.user);
        }
    }

    #[test]
    fn low_bits_of_cr3_are_no_address() {
        let va = 0x7FFF_0000_1000;
        let memory = map(va, 12, 0x5000 | PRESENT | USER | NO_EXECUTE);
        let cr3 = 0x1000 | 0xABC | 1 << 63;
        let found = translate(cr3, false, Gva::new(va), |at| memory.get(&at).copied());
        assert!(!found.unwrap().executable);
    }

    proptest! {
        #[test]
        fn hostile_tables_end_the_walk(cr3: u64, va: u64, la57: bool, seed: u64) {
            let mut reads = 0;
            let _ = translate(cr3, la57, Gva::new(va), |at| {
                reads += 1;
                // Entries that look present, point anywhere, sometimes at themselves.
                Some(at.wrapping_mul(seed | 1) | 1)
            });
            prop_assert!(reads <= 5);
        }

        #[test]
        fn what_is_not_canonical_is_not_walked(va in 0x0000_8000_0000_0000_u64..0xFFFF_7FFF_FFFF_FFFF) {
            let mut reads = 0;
            let found = translate(0x1000, false, Gva::new(va), |_| { reads += 1; Some(1) });
            prop_assert!(found.is_none() && reads == 0);
        }
    }
}
