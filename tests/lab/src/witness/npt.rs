//! A walk over all of one nested-page-table hierarchy (AMD64 APM volume 2, "Nested
//! Paging" and "Long-Mode Page Translation": the formats are those of a guest's own
//! tables).
//!
//! Every access of the guest is a user access here, so U must be set on the whole
//! way; "no execute" takes the right from kernel and user alike. (The guest mode
//! execute trap would make an exception of code; no emulator has it.) PWT, PCD and
//! PAT choose an entry of the host's PAT, and 0 is write-back: what the guest's PAT
//! and the MTRRs say of the page then decides alone, so a leaf that chooses another
//! one is malformed.

use super::checkpoint::Checkpoint;
use super::nested::{Leaf, PAGE, Space, address_mask};
use anyhow::{Result, bail};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const CACHE: u64 = 3 << 3;
const LARGE: u64 = 1 << 7;
/// In a 4 KB entry; in a large one it is bit 12.
const PAT_SMALL: u64 = 1 << 7;
const PAT_LARGE: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;

/// Fills `space` with what `N_CR3` leads to. Four levels: host CR4.LA57 is 0.
pub(crate) fn walk(checkpoint: &Checkpoint, ncr3: u64, space: &mut Space) -> Result<()> {
    if ncr3 & !address_mask(checkpoint) & !CACHE != 0 {
        bail!("reserved bits are set");
    }
    let root = ncr3 & address_mask(checkpoint);
    table(checkpoint, space, root, 4, 0, (true, true))
}

fn table(
    checkpoint: &Checkpoint,
    space: &mut Space,
    table_address: u64,
    level: u32,
    guest: u64,
    (write, execute): (bool, bool),
) -> Result<()> {
    space.tables.insert(table_address);
    let mask = address_mask(checkpoint);
    let size = PAGE << (9 * (level - 1));
    for index in 0..512 {
        let Some(entry) = checkpoint.entry(table_address + index * 8) else {
            bail!("a table at {table_address:#x} lies outside of RAM");
        };
        if entry & PRESENT == 0 {
            continue;
        }
        let guest = guest + index * size;
        let mut malformed = |what: &str| {
            space
                .malformed
                .push(format!("{guest:#x}: {entry:#x} {what}"));
        };
        if entry & USER == 0 {
            malformed("is no user page: every access of the guest faults");
        }
        if entry & !mask & 0x000F_FFFF_FFFF_F000 != 0 {
            malformed("exceeds the physical address width");
            continue;
        }
        let rights = (
            write && entry & WRITE != 0,
            execute && entry & NO_EXECUTE == 0,
        );
        let leaf = level == 1 || entry & LARGE != 0;
        if !leaf {
            table(checkpoint, space, entry & mask, level - 1, guest, rights)?;
            continue;
        }
        if level == 4 {
            malformed("has a reserved bit set: there are no pages of that size");
            continue;
        }
        let pat = if level == 1 { PAT_SMALL } else { PAT_LARGE };
        if entry & (CACHE | pat) != 0 {
            malformed("chooses another entry of the PAT than 0");
        }
        let target = entry & mask & if level == 1 { !0 } else { !PAT_LARGE };
        if target & (size - 1) != 0 {
            malformed("is not aligned to its size");
            continue;
        }
        space.leaves.push(Leaf {
            guest,
            target,
            size,
            write: rights.0,
            execute: rights.1,
            user_execute: rights.1,
            memory_type: None,
        });
    }
    Ok(())
}
