//! Translating the guest's linear addresses through the guest's page tables.
//!
//! Pure: physical memory is read through a closure that refuses what is not RAM.
//! The tables are the guest's and may be hostile: every step masks, nothing is
//! trusted, at most five reads are made. Intel SDM vol. 3, chapter "Paging". All
//! modes are walked: a core that is being started passes through the old ones.

use ept::addr::{Gpa, Gva};

/// How the guest translates linear addresses (Intel SDM vol. 3, "Paging Modes and
/// Control Bits").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// CR0.PG = 0: linear addresses are physical ones.
    Off,
    /// 32-bit paging.
    Bits32 {
        /// CR4.PSE: 4 MB pages.
        large: bool,
    },
    /// PAE paging.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

impl Paging {
    /// The mode that CR0, CR4 and EFER select.
    #[must_use]
    pub const fn of(cr0: u64, cr4: u64, efer: u64) -> Self {
        if cr0 & 1 << 31 == 0 {
            Self::Off
        } else if efer & 1 << 10 != 0 {
            if cr4 & 1 << 12 != 0 {
                Self::Level5
            } else {
                Self::Level4
            }
        } else if cr4 & 1 << 5 != 0 {
            Self::Pae
        } else {
            Self::Bits32 {
                large: cr4 & 1 << 4 != 0,
            }
        }
    }
}

/// A translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of the way"
)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Every level allows user-mode access.
    pub user: bool,
    /// Every level allows writes.
    pub writable: bool,
    /// No level forbids execution.
    pub executable: bool,
    /// All accessed flags and the page's dirty flag are set: the processor has
    /// nothing to note at a write.
    pub noted: bool,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Walks from `cr3`. `read` gives the quadword at a guest-physical address that is
/// a multiple of 8, or `None` when that is no RAM; it is told the level of the table
/// that the address lies in, 1 for the lowest.
pub fn translate(
    paging: Paging,
    cr3: u64,
    gva: Gva,
    mut read: impl FnMut(u8, u64) -> Option<u64>,
) -> Option<Translation> {
    let va = gva.as_u64();
    let top = match paging {
        Paging::Off => {
            return Some(Translation {
                gpa: Gpa::new(va & 0xFFFF_FFFF),
                user: true,
                writable: true,
                executable: true,
                noted: true,
            });
        }
        Paging::Bits32 { large } => return translate32(cr3, large, va, read),
        Paging::Pae => {
            let va = va & 0xFFFF_FFFF;
            let pointer = read(3, (cr3 & 0xFFFF_FFE0) + (va >> 30) * 8)?;
            if pointer & PRESENT == 0 {
                return None;
            }
            return descend(va, 21, pointer & ADDRESS, read);
        }
        Paging::Level4 => 48,
        Paging::Level5 => 57,
    };
    // Canonical: all bits from the sign bit up are equal.
    #[expect(clippy::cast_possible_wrap, reason = "sign extension is meant")]
    let sign = (va as i64) >> (top - 1);
    if sign != 0 && sign != -1 {
        return None;
    }
    descend(va, top - 9, cr3 & ADDRESS, read)
}

/// Walks tables of 512 entries down from the one whose entries map `1 << shift`
/// bytes each.
fn descend(
    va: u64,
    mut shift: u32,
    mut table: u64,
    mut read: impl FnMut(u8, u64) -> Option<u64>,
) -> Option<Translation> {
    // Rights are what every level allows; one level is enough to forbid execution.
    let (mut every, mut any) = (u64::MAX, 0);
    let mut level = match shift {
        48 => 5,
        39 => 4,
        // PAE paging, below its four pointers.
        _ => 2,
    };
    loop {
        let index = va >> shift & 511;
        let entry = read(level, table + index * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        every &= entry;
        any |= entry;
        let leaf = shift == 12 || (entry & LARGE != 0 && shift <= 30);
        if leaf {
            let offset = (1_u64 << shift) - 1;
            let base = entry & ADDRESS & !offset;
            return Some(Translation {
                gpa: Gpa::new(base | va & offset),
                user: every & USER != 0,
                writable: every & WRITABLE != 0,
                executable: any & NO_EXECUTE == 0,
                noted: every & ACCESSED != 0 && entry & DIRTY != 0,
            });
        }
        table = entry & ADDRESS;
        shift -= 9;
        level -= 1;
    }
}

/// 32-bit paging: two levels of 1,024 entries of four bytes.
fn translate32(
    cr3: u64,
    large: bool,
    va: u64,
    mut read: impl FnMut(u8, u64) -> Option<u64>,
) -> Option<Translation> {
    let va = va & 0xFFFF_FFFF;
    let mut entry_at = |level: u8, address: u64| {
        let both = read(level, address & !7)?;
        let entry = if address & 4 == 0 { both } else { both >> 32 } & 0xFFFF_FFFF;
        (entry & PRESENT != 0).then_some(entry)
    };
    let directory = entry_at(2, (cr3 & 0xFFFF_F000) + (va >> 22) * 4)?;
    let rights = |entry: u64| (entry & USER != 0, entry & WRITABLE != 0);
    let (user, writable) = rights(directory);
    if large && directory & LARGE != 0 {
        // Bits 20:13 hold bits 39:32 of the address (PSE-36).
        let base = directory & 0xFFC0_0000 | (directory >> 13 & 0xFF) << 32;
        return Some(Translation {
            gpa: Gpa::new(base | va & 0x3F_FFFF),
            user,
            writable,
            executable: true,
            noted: directory & (ACCESSED | DIRTY) == ACCESSED | DIRTY,
        });
    }
    let page = entry_at(1, (directory & 0xFFFF_F000) + (va >> 12 & 1023) * 4)?;
    let (page_user, page_writable) = rights(page);
    Some(Translation {
        gpa: Gpa::new(page & 0xFFFF_F000 | va & 0xFFF),
        user: user && page_user,
        writable: writable && page_writable,
        executable: true,
        noted: directory & ACCESSED != 0 && page & (ACCESSED | DIRTY) == ACCESSED | DIRTY,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn map(top: u32, va: u64, leaf_shift: u32, entry: u64) -> BTreeMap<u64, u64> {
        let mut memory = BTreeMap::new();
        let mut table = 0x1000;
        let mut shift = top;
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
            let memory = map(39, va, shift, 0x1_4000_0000 | PRESENT | WRITABLE | large);
            let found = translate(Paging::Level4, 0x1000, Gva::new(va), |_, at| {
                memory.get(&at).copied()
            });
            let found = found.unwrap();
            assert_eq!(found.gpa.as_u64(), 0x1_4000_0000 | va & ((1 << shift) - 1));
            assert!(found.writable && found.executable && !found.user);
        }
    }

    #[test]
    fn low_bits_of_cr3_are_no_address() {
        let va = 0x7FFF_0000_1000;
        let memory = map(39, va, 12, 0x5000 | PRESENT | USER | NO_EXECUTE);
        let cr3 = 0x1000 | 0xABC | 1 << 63;
        let found = translate(Paging::Level4, cr3, Gva::new(va), |_, at| {
            memory.get(&at).copied()
        });
        assert!(!found.unwrap().executable);
    }

    #[test]
    fn the_mode_follows_the_control_registers() {
        const PG: u64 = 1 << 31;
        assert_eq!(Paging::of(0x11, 0x20, 0xD01), Paging::Off);
        assert_eq!(Paging::of(PG, 0, 0), Paging::Bits32 { large: false });
        assert_eq!(Paging::of(PG, 0x10, 0), Paging::Bits32 { large: true });
        assert_eq!(Paging::of(PG, 0x20, 0x100), Paging::Pae);
        assert_eq!(Paging::of(PG, 0x20, 0x500), Paging::Level4);
        assert_eq!(Paging::of(PG, 0x1020, 0x500), Paging::Level5);
    }

    #[test]
    fn the_old_modes_are_walked() {
        let found = translate(Paging::Off, 0, Gva::new(0x8_1234), |_, _| None).unwrap();
        assert_eq!(found.gpa.as_u64(), 0x8_1234);

        // 32-bit paging: entry 1 (the upper half of the first quadword) of the
        // directory leads to a table whose entry 2 maps 0x7000.
        let memory = BTreeMap::from([
            (0x1000, (0x2000_u64 | 0x27) << 32),
            (0x2008, 0x7000_u64 | 0x65),
        ]);
        let read = |_: u8, at: u64| memory.get(&at).copied();
        let found = translate(
            Paging::Bits32 { large: false },
            0x1018,
            Gva::new(0x0040_2ABC),
            read,
        );
        let found = found.unwrap();
        assert_eq!(found.gpa.as_u64(), 0x7ABC);
        assert!(found.user && !found.writable && found.noted);

        // A 4 MB page above 4 GB.
        let memory = BTreeMap::from([(0x1000, 0x0040_0000_u64 | 1 << 13 | LARGE | 3)]);
        let read = |_: u8, at: u64| memory.get(&at).copied();
        let large = Paging::Bits32 { large: true };
        let found = translate(large, 0x1000, Gva::new(0x1_2345), read).unwrap();
        assert_eq!(found.gpa.as_u64(), 0x1_0041_2345);
        assert!(!found.noted);
        // The same entry names a table without PSE.
        let small = Paging::Bits32 { large: false };
        assert!(translate(small, 0x1000, Gva::new(0x1_2345), read).is_none());

        // PAE: four pointers, then two levels.
        let memory = BTreeMap::from([
            (0x1038, 0x2001_u64),
            (0x2008, 0x3003),
            (0x3000, 0x9003 | NO_EXECUTE),
        ]);
        let read = |_: u8, at: u64| memory.get(&at).copied();
        let found = translate(Paging::Pae, 0x1020, Gva::new(0xC020_0010), read).unwrap();
        assert_eq!(found.gpa.as_u64(), 0x9010);
        assert!(!found.executable && found.writable);
        // The same way behind a pointer that is not present.
        let memory = BTreeMap::from([(0x1038, 0x2000_u64), (0x2008, 0x3003), (0x3000, 0x9003)]);
        let read = |_: u8, at: u64| memory.get(&at).copied();
        assert!(translate(Paging::Pae, 0x1020, Gva::new(0xC020_0010), read).is_none());
    }

    #[test]
    fn the_canonical_addresses_end_where_the_manual_says() {
        for (paging, bits) in [(Paging::Level4, 48), (Paging::Level5, 57)] {
            let reads = |va: u64| {
                let mut reads = 0;
                let found = translate(paging, 0x1000, Gva::new(va), |_, _| {
                    reads += 1;
                    None
                });
                assert!(found.is_none());
                reads
            };
            let half = 1_u64 << (bits - 1);
            for va in [0, half - 1, half.wrapping_neg(), u64::MAX] {
                assert_eq!(reads(va), 1, "{va:#x}");
            }
            for va in [half, half << 1, 1 << 63, half.wrapping_neg() - 1] {
                assert_eq!(reads(va), 0, "{va:#x}");
            }
        }
    }

    #[test]
    fn a_write_is_noted_when_every_flag_is_set() {
        let va = 0xFFFF_8000_0000_0000;
        for (leaf, noted) in [(0x61, true), (0x41, false), (0x21, false)] {
            let mut memory = map(39, va, 12, 0x5000 | leaf);
            for (_, entry) in memory.iter_mut().filter(|(at, _)| **at < 0x4000) {
                *entry |= ACCESSED;
            }
            let read = |_: u8, at: u64| memory.get(&at).copied();
            let found = translate(Paging::Level4, 0x1000, Gva::new(va), read).unwrap();
            assert_eq!(found.noted, noted, "{leaf:#x}");
        }
    }

    /// Each flag at each level, one at a time.
    #[test]
    fn every_level_has_its_say() {
        const FLAGS: [u64; 6] = [PRESENT, WRITABLE, USER, ACCESSED, DIRTY, NO_EXECUTE];
        let va = 0x7F_FFF1_2345_6789;
        let (small, large) = (
            Paging::Bits32 { large: false },
            Paging::Bits32 { large: true },
        );
        for (paging, count, memory) in [
            (
                Paging::Level4,
                4,
                map(39, va & 0x7FFF_FFFF_FFFF, 12, 0xA000),
            ),
            (Paging::Level5, 5, map(48, va, 12, 0xA000)),
            (
                small,
                2,
                BTreeMap::from([(0x1F10, 0x2000), (0x2D18, 0xA000)]),
            ),
            (
                large,
                2,
                BTreeMap::from([(0x1F10, 0x2000), (0x2D18, 0xA000)]),
            ),
        ] {
            let (va, no_execute) = match paging {
                Paging::Level4 => (va & 0x7FFF_FFFF_FFFF, NO_EXECUTE),
                Paging::Level5 => (va, NO_EXECUTE),
                _ => (0xF134_6789, 0),
            };
            for (level, flag) in (1..=count).flat_map(|level| FLAGS.map(|flag| (level, flag))) {
                let mut memory = memory.clone();
                for (at, entry) in &mut memory {
                    *entry |= PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
                    if at >> 12 == u64::from(count + 1 - level) {
                        *entry ^= flag;
                    }
                    if count == 2 {
                        // Nothing of this is the neighbour's.
                        *entry = *entry & 0xFFFF_FFFF | !(*entry) << 32;
                    }
                }
                let mut levels = std::vec::Vec::new();
                let found = translate(paging, 0x1018, Gva::new(va), |level, at| {
                    levels.push(level);
                    memory.get(&at).copied()
                });
                let expected = Translation {
                    gpa: Gpa::new(0xA789),
                    user: flag != USER,
                    writable: flag != WRITABLE,
                    executable: flag & no_execute == 0,
                    noted: flag != ACCESSED && (flag, level) != (DIRTY, 1),
                };
                let reached = if flag == PRESENT { level } else { 1 };
                assert_eq!(found, (flag != PRESENT).then_some(expected), "{flag:#x}");
                assert!(levels.into_iter().eq((reached..=count).rev()));
            }
        }
    }

    #[test]
    fn every_flag_of_a_4_mb_page_counts() {
        let paging = Paging::Bits32 { large: true };
        for flag in [0, PRESENT, WRITABLE, USER, ACCESSED, DIRTY] {
            // The lowest and the highest of the eight upper bits of the address.
            let entry = (0xFFC0_0000 | 1 << 20 | 1 << 13 | 0xE7) ^ flag;
            let found = translate(paging, 0x1000, Gva::new(0x3F_FFFF), |level, at| {
                assert_eq!((level, at), (2, 0x1000));
                Some(entry)
            });
            let expected = Translation {
                gpa: Gpa::new(0x81_FFFF_FFFF),
                user: flag != USER,
                writable: flag != WRITABLE,
                executable: true,
                noted: flag != ACCESSED && flag != DIRTY,
            };
            assert_eq!(found, (flag != PRESENT).then_some(expected), "{flag:#x}");
        }
    }

    proptest! {
        #[test]
        fn hostile_tables_end_the_walk(cr3: u64, va: u64, la57: bool, seed: u64) {
            let mut reads = 0;
            let paging = if la57 { Paging::Level5 } else { Paging::Level4 };
            let _ = translate(paging, cr3, Gva::new(va), |_, at| {
                reads += 1;
                // Entries that look present, point anywhere, sometimes at themselves.
                Some(at.wrapping_mul(seed | 1) | 1)
            });
            prop_assert!(reads <= 5);
        }

        #[test]
        fn what_is_not_canonical_is_not_walked(va in 0x0000_8000_0000_0000_u64..0xFFFF_7FFF_FFFF_FFFF) {
            let mut reads = 0;
            let found = translate(Paging::Level4, 0x1000, Gva::new(va), |_, _| { reads += 1; Some(1) });
            prop_assert!(found.is_none() && reads == 0);
        }
    }
}
