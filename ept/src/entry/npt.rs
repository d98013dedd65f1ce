//! AMD's entries: APM volume 2, "Nested Paging", which are those of "Long-Mode
//! Page Translation".
//!
//! Every guest access walks these tables as a user access, so the U bit is
//! always set; "no execute" is an inverted right. There is one execute right:
//! `EXEC_KERNEL` decides. There is no memory type: PAT index 0 of the host,
//! write-back, combines with the guest's PAT, and the processor applies the
//! MTRRs itself. The accessed and dirty bits are set beforehand, so that the
//! processor never writes an entry behind our back. The software note uses the
//! available bits 9-11 and 52-58, and bit 59, which is available while host
//! CR4.PKE is 0.

use super::{ADDRESS, Access, Decoded, LARGE, NestedEntry, Soft, SoftLayout, frame, leaf_size};
use crate::addr::{Hpa, PageSize};
use crate::memtype::MemoryType;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

const SOFT: SoftLayout = SoftLayout {
    state_low: 9,
    state_high: 10,
    code: 11,
};

/// AMD's nested page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NptFormat;

impl NestedEntry for NptFormat {
    fn table(&self, hpa: Hpa) -> u64 {
        frame(hpa, PageSize::Size4K) | PRESENT | WRITE | USER | ACCESSED
    }

    #[inline]
    fn leaf(&self, hpa: Hpa, size: PageSize, access: Access, _mt: MemoryType, soft: Soft) -> u64 {
        let access = access.legal();
        if !access.contains(Access::READ) {
            return 0;
        }
        let mut raw = frame(hpa, size) | PRESENT | USER | ACCESSED | DIRTY | SOFT.pack(soft);
        if access.contains(Access::WRITE) {
            raw |= WRITE;
        }
        if !access.contains(Access::EXEC_KERNEL) {
            raw |= NO_EXECUTE;
        }
        if !matches!(size, PageSize::Size4K) {
            raw |= LARGE;
        }
        raw
    }

    #[inline]
    fn decode(&self, raw: u64, level: u8) -> Decoded {
        if raw & PRESENT == 0 {
            return Decoded::Absent;
        }
        let Some(size) = leaf_size(raw, level) else {
            return Decoded::Table(Hpa::new(raw & ADDRESS));
        };
        let mut access = Access::READ;
        access.set(Access::WRITE, raw & WRITE != 0);
        access.set(
            Access::EXEC_KERNEL | Access::EXEC_USER,
            raw & NO_EXECUTE == 0,
        );
        Decoded::Leaf {
            hpa: Hpa::new(raw & ADDRESS).align_down(size),
            size,
            access,
            mt: MemoryType::Wb,
            soft: SOFT.unpack(raw),
        }
    }

    #[inline]
    fn next_table(&self, raw: u64, level: u8) -> Option<Hpa> {
        if raw & PRESENT == 0 || leaf_size(raw, level).is_some() {
            return None;
        }
        Some(Hpa::new(raw & ADDRESS))
    }

    fn separates_user_fetches(&self) -> bool {
        false
    }

    fn has_memory_types(&self) -> bool {
        false
    }
}
