//! A walk over the host's 4-level page tables (Intel SDM volume 3, "4-Level
//! Paging and 5-Level Paging").

use super::checkpoint::Checkpoint;
use anyhow::{Result, bail};
use std::collections::BTreeSet;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// One 4 KB page that the host maps. Larger mappings appear as their pages.
#[derive(Clone, Debug)]
pub(crate) struct HostPage {
    /// Linear address.
    pub(crate) linear: u64,
    /// Physical address.
    pub(crate) target: u64,
    /// Writable.
    pub(crate) write: bool,
    /// Executable.
    pub(crate) execute: bool,
}

/// All that one CR3 maps.
#[derive(Debug, Default)]
pub(crate) struct HostSpace {
    /// Every page.
    pub(crate) pages: Vec<HostPage>,
    /// The tables themselves.
    pub(crate) tables: BTreeSet<u64>,
}

/// More pages than a thin hypervisor has any use for: 1 GiB.
const MOST_PAGES: usize = 1 << 18;

impl HostSpace {
    /// Walks the tables of a CR3.
    pub(crate) fn walk(checkpoint: &Checkpoint, cr3: u64) -> Result<Self> {
        let mut space = Self::default();
        space.table(checkpoint, cr3 & ADDRESS, 4, 0, true, true)?;
        Ok(space)
    }

    fn table(
        &mut self,
        checkpoint: &Checkpoint,
        table: u64,
        level: u32,
        linear: u64,
        write: bool,
        execute: bool,
    ) -> Result<()> {
        self.tables.insert(table);
        let size = 4096u64 << (9 * (level - 1));
        for index in 0..512u64 {
            let Some(entry) = checkpoint.entry(table + index * 8) else {
                bail!("a table at {table:#x} lies outside of RAM");
            };
            if entry & PRESENT == 0 {
                continue;
            }
            let mut linear = linear + index * size;
            if level == 4 && index >= 256 {
                linear |= 0xFFFF_0000_0000_0000;
            }
            let write = write && entry & WRITE != 0;
            let execute = execute && entry & NO_EXECUTE == 0;
            if level > 1 && entry & LARGE == 0 {
                self.table(
                    checkpoint,
                    entry & ADDRESS,
                    level - 1,
                    linear,
                    write,
                    execute,
                )?;
                continue;
            }
            let first = entry & ADDRESS & !(size - 1);
            for offset in (0..size).step_by(4096) {
                if self.pages.len() >= MOST_PAGES {
                    bail!("it maps more than 1 GiB: these are not tables of its own");
                }
                self.pages.push(HostPage {
                    linear: linear + offset,
                    target: first + offset,
                    write,
                    execute,
                });
            }
        }
        Ok(())
    }

    /// The physical address behind a linear one.
    pub(crate) fn translate(&self, linear: u64) -> Option<u64> {
        let page = linear & !0xFFF;
        self.pages
            .iter()
            .find(|known| known.linear == page)
            .map(|known| known.target | (linear & 0xFFF))
    }
}
