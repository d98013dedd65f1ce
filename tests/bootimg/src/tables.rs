//! Four-level page tables, built on the host for a physical place.
//!
//! Intel SDM volume 3, 5.5 "4-Level Paging". Upper levels grant everything; the
//! leaf decides.

use crate::layout::PAGE;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

/// What a page may be used for, always by the supervisor alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    Read,
    ReadWrite,
    ReadExecute,
    ReadWriteExecute,
}

impl Rights {
    fn bits(self) -> u64 {
        match self {
            Self::Read => NO_EXECUTE,
            Self::ReadWrite => NO_EXECUTE | WRITE,
            Self::ReadExecute => 0,
            Self::ReadWriteExecute => WRITE,
        }
    }
}

/// Tables under construction; table `n` will lie at `base + n * PAGE`.
pub(crate) struct Tables {
    base: u64,
    tables: Vec<[u64; 512]>,
}

impl Tables {
    pub(crate) fn new(base: u64) -> Self {
        Self {
            base,
            tables: vec![[0; 512]],
        }
    }

    /// Physical address of the PML4.
    pub(crate) fn root(&self) -> u64 {
        self.base
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.tables
            .iter()
            .flatten()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    }

    /// Maps 4 KiB. Kernel-half pages are global, as NT's are.
    pub(crate) fn map_page(&mut self, address: u64, physical: u64, rights: Rights) {
        let table = self.walk(address, 3);
        self.set(table, address >> 12, physical, rights, address, 0);
    }

    /// Maps 2 MiB.
    pub(crate) fn map_large(&mut self, address: u64, physical: u64, rights: Rights) {
        let table = self.walk(address, 2);
        self.set(table, address >> 21, physical, rights, address, LARGE);
    }

    fn set(
        &mut self,
        table: usize,
        index: u64,
        physical: u64,
        rights: Rights,
        address: u64,
        extra: u64,
    ) {
        let global = if address >> 63 == 1 { GLOBAL } else { 0 };
        self.tables[table][(index & 511) as usize] =
            physical | PRESENT | ACCESSED | DIRTY | rights.bits() | global | extra;
    }

    /// Goes down `levels` levels, adding tables, and returns the last table's number.
    fn walk(&mut self, address: u64, levels: u32) -> usize {
        let mut table = 0;
        for level in 0..levels {
            let index = (address >> (39 - 9 * level) & 511) as usize;
            let entry = self.tables[table][index];
            table = if entry & PRESENT == 0 {
                let next = self.tables.len();
                self.tables.push([0; 512]);
                let physical = self.base + next as u64 * PAGE;
                self.tables[table][index] = physical | PRESENT | WRITE | ACCESSED;
                next
            } else {
                assert!(
                    entry & LARGE == 0,
                    "{address:#x} is already mapped by a large page"
                );
                usize::try_from(((entry & FRAME) - self.base) / PAGE).expect("a table of ours")
            };
        }
        table
    }
}

/// What a walk of finished tables finds: physical address and leaf entry.
#[cfg(test)]
pub(crate) fn translate(
    memory: impl Fn(u64) -> u64,
    root: u64,
    address: u64,
) -> Option<(u64, u64)> {
    let mut table = root;
    for shift in [39, 30, 21, 12] {
        let entry = memory(table + (address >> shift & 511) * 8);
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || entry & LARGE != 0 {
            let inside = (1u64 << shift) - 1;
            return Some(((entry & FRAME & !inside) | (address & inside), entry));
        }
        table = entry & FRAME;
    }
    None
}
