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

use super::{
    ADDRESS, Access, BOUNCES_SHIFT, Decoded, LARGE, NestedEntry, READABLE, Soft, SoftLayout, frame,
    leaf_size,
};
use crate::addr::{Hpa, PageSize};
use crate::memtype::MemoryType;
use crate::wx::PageState;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

const SOFT: SoftLayout = SoftLayout { state: 9, code: 11 };

const RIGHTS: u64 = WRITE | NO_EXECUTE;

/// The bits of each state: its rights, and the state in the note.
const STATES: [u64; 4] = {
    let mut states = [0; 4];
    let mut index = 0_u8;
    while index < 4 {
        let state = PageState::from_bits(index);
        let note = Soft {
            state,
            bounces: 0,
            code: false,
        };
        states[index as usize] = right_bits(state.access(false)) | SOFT.pack(note);
        index += 1;
    }
    states
};

/// The bits of rights that have [`Access::READ`] among them.
#[inline]
const fn right_bits(access: Access) -> u64 {
    let write = if access.contains(Access::WRITE) {
        WRITE
    } else {
        0
    };
    let fetch = if access.contains(Access::EXEC_KERNEL) {
        0
    } else {
        NO_EXECUTE
    };
    write | fetch
}

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
        raw |= right_bits(access);
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

    #[inline]
    fn state(&self, leaf: u64) -> PageState {
        SOFT.state(leaf)
    }

    #[inline]
    fn soft(&self, leaf: u64) -> Soft {
        SOFT.unpack(leaf)
    }

    #[inline]
    fn rights(&self, leaf: u64) -> u64 {
        (leaf ^ NO_EXECUTE) & RIGHTS
    }

    #[inline]
    fn restate(&self, leaf: u64, state: PageState, bounces: u8) -> u64 {
        (leaf & !(RIGHTS | SOFT.turning()))
            | STATES[usize::from(state.bits() & 3)]
            | u64::from(bounces) << BOUNCES_SHIFT
    }

    #[inline]
    fn with_rights(&self, leaf: u64, access: Access) -> u64 {
        (leaf & !RIGHTS) | right_bits(access)
    }

    #[inline]
    fn maps_identically(&self, leaf: u64, page: u64) -> bool {
        (leaf ^ page) & (ADDRESS | READABLE) == 0
    }

    fn separates_user_fetches(&self) -> bool {
        false
    }

    fn has_memory_types(&self) -> bool {
        false
    }
}
