//! A walk over all of one EPT paging-structure hierarchy (Intel SDM volume 3,
//! "The EPT Translation Mechanism", tables "Format of an EPT … Entry").

use super::checkpoint::Checkpoint;
use super::nested::{Leaf, PAGE, Space, address_mask};
use anyhow::{Result, bail};

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const USER_EXECUTE: u64 = 1 << 10;

/// Fills `space` with what an EPT pointer leads to.
pub(crate) fn walk(checkpoint: &Checkpoint, eptp: u64, space: &mut Space) -> Result<()> {
    // EPTP: bits 2:0 memory type (6, write-back), 5:3 page-walk length less one.
    if eptp & 7 != 6 || (eptp >> 3) & 7 != 3 {
        bail!("not write-back, or not four levels");
    }
    let root = eptp & address_mask(checkpoint);
    let rights = WRITE | EXECUTE | USER_EXECUTE;
    table(checkpoint, space, root, 4, 0, rights)
}

fn table(
    checkpoint: &Checkpoint,
    space: &mut Space,
    table_address: u64,
    level: u32,
    guest: u64,
    rights: u64,
) -> Result<()> {
    space.tables.insert(table_address);
    let size = PAGE << (9 * (level - 1));
    for index in 0..512 {
        let Some(entry) = checkpoint.entry(table_address + index * 8) else {
            bail!("a table at {table_address:#x} lies outside of RAM");
        };
        // With mode-based control, bit 10 alone makes an entry present as well.
        if entry & (READ | WRITE | EXECUTE | USER_EXECUTE) == 0 {
            continue;
        }
        let guest = guest + index * size;
        if entry & READ == 0 {
            space
                .malformed
                .push(format!("{guest:#x}: {entry:#x} grants no reading"));
            continue;
        }
        if entry & !address_mask(checkpoint) & 0x000F_FFFF_FFFF_F000 != 0 {
            space.malformed.push(format!(
                "{guest:#x}: {entry:#x} exceeds the physical address width"
            ));
            continue;
        }
        let rights = rights & entry;
        let target = entry & address_mask(checkpoint);
        let leaf = level == 1 || entry & LARGE != 0;
        if !leaf {
            if entry & 0xF8 != 0 {
                space
                    .malformed
                    .push(format!("{guest:#x}: {entry:#x} has reserved bits set"));
            }
            table(checkpoint, space, target, level - 1, guest, rights)?;
            continue;
        }
        let memory_type = ((entry >> 3) & 7) as u8;
        if level == 4 || matches!(memory_type, 2 | 3 | 7) || target & (size - 1) != 0 {
            space.malformed.push(format!(
                "{guest:#x}: {entry:#x} has a wrong size, type or alignment"
            ));
            continue;
        }
        space.leaves.push(Leaf {
            guest,
            target,
            size,
            write: rights & WRITE != 0,
            execute: rights & EXECUTE != 0,
            user_execute: rights & USER_EXECUTE != 0,
            memory_type: Some(memory_type),
        });
    }
    Ok(())
}
