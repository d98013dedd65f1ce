//! A walk over all of one EPT paging-structure hierarchy (Intel SDM volume 3,
//! "The EPT Translation Mechanism", tables "Format of an EPT … Entry").

use super::checkpoint::Checkpoint;
use anyhow::{Result, bail};
use std::collections::BTreeSet;

/// Bytes of the smallest page.
pub(crate) const PAGE: u64 = 4096;

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const USER_EXECUTE: u64 = 1 << 10;

/// One mapping of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First guest-physical address.
    pub(crate) guest: u64,
    /// First physical address that it leads to.
    pub(crate) target: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Every entry on the way grants writing.
    pub(crate) write: bool,
    /// Every entry on the way grants execution (to the kernel, with MBEC).
    pub(crate) execute: bool,
    /// Bit 10 of every entry on the way: execution by user code, with MBEC.
    pub(crate) user_execute: bool,
    /// EPT memory type.
    pub(crate) memory_type: u8,
}

impl Leaf {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{:#x}+{:#x} r{}{}{}{}",
            self.guest,
            self.size,
            if self.write { "w" } else { "-" },
            if self.execute { "x" } else { "-" },
            if self.user_execute { "u" } else { "-" },
            if self.guest == self.target {
                String::new()
            } else {
                format!(" -> {:#x}", self.target)
            }
        )
    }
}

/// A whole hierarchy.
#[derive(Debug)]
pub(crate) struct Space {
    /// The EPT pointer.
    pub(crate) eptp: u64,
    /// Every mapping.
    pub(crate) leaves: Vec<Leaf>,
    /// Pages that the hierarchy consists of.
    pub(crate) tables: BTreeSet<u64>,
    /// Entries that a processor would answer with an EPT misconfiguration.
    pub(crate) malformed: Vec<String>,
}

impl Space {
    /// Walks the hierarchy of an EPT pointer.
    pub(crate) fn walk(checkpoint: &Checkpoint, eptp: u64) -> Result<Self> {
        // EPTP: bits 2:0 memory type (6, write-back), 5:3 page-walk length less one.
        if eptp & 7 != 6 || (eptp >> 3) & 7 != 3 {
            bail!("not write-back, or not four levels");
        }
        let mut space = Self {
            eptp,
            leaves: Vec::new(),
            tables: BTreeSet::new(),
            malformed: Vec::new(),
        };
        let root = eptp & address_mask(checkpoint);
        space.table(checkpoint, root, 4, 0, WRITE | EXECUTE | USER_EXECUTE)?;
        Ok(space)
    }

    fn table(
        &mut self,
        checkpoint: &Checkpoint,
        table: u64,
        level: u32,
        guest: u64,
        rights: u64,
    ) -> Result<()> {
        self.tables.insert(table);
        let size = PAGE << (9 * (level - 1));
        for index in 0..512 {
            let Some(entry) = checkpoint.entry(table + index * 8) else {
                bail!("a table at {table:#x} lies outside of RAM");
            };
            // With mode-based control, bit 10 alone makes an entry present as well.
            if entry & (READ | WRITE | EXECUTE | USER_EXECUTE) == 0 {
                continue;
            }
            let guest = guest + index * size;
            if entry & READ == 0 {
                self.malformed
                    .push(format!("{guest:#x}: {entry:#x} grants no reading"));
                continue;
            }
            if entry & !address_mask(checkpoint) & 0x000F_FFFF_FFFF_F000 != 0 {
                self.malformed.push(format!(
                    "{guest:#x}: {entry:#x} exceeds the physical address width"
                ));
                continue;
            }
            let rights = rights & entry;
            let target = entry & address_mask(checkpoint);
            let leaf = level == 1 || entry & LARGE != 0;
            if !leaf {
                if entry & 0xF8 != 0 {
                    self.malformed
                        .push(format!("{guest:#x}: {entry:#x} has reserved bits set"));
                }
                self.table(checkpoint, target, level - 1, guest, rights)?;
                continue;
            }
            let memory_type = ((entry >> 3) & 7) as u8;
            if level == 4 || matches!(memory_type, 2 | 3 | 7) || target & (size - 1) != 0 {
                self.malformed.push(format!(
                    "{guest:#x}: {entry:#x} has a wrong size, type or alignment"
                ));
                continue;
            }
            self.leaves.push(Leaf {
                guest,
                target,
                size,
                write: rights & WRITE != 0,
                execute: rights & EXECUTE != 0,
                user_execute: rights & USER_EXECUTE != 0,
                memory_type,
            });
        }
        Ok(())
    }
}

fn address_mask(checkpoint: &Checkpoint) -> u64 {
    ((1 << checkpoint.physical_bits) - 1) & !(PAGE - 1)
}
