//! Intel's entries: Intel SDM volume 3, "EPT Translation Mechanism", tables
//! "Format of an EPT PML4 Entry" to "Format of an EPT Page-Table Entry", and
//! "Extended-Page-Table Pointer".
//!
//! IPAT stays 0 so that the guest's own PAT keeps working. The accessed and
//! dirty flags are off: with them on, the guest's page-table *reads* would
//! count as writes. The software note uses bits that are ignored under the
//! controls this hypervisor runs with: 11, 52-56, 59 and 62 always; 57 and 58
//! as guest-paging verification and paging-write control are never enabled; 63
//! as EPT-violation #VE is never enabled.

use super::{
    ADDRESS, Access, BOUNCES_SHIFT, Decoded, LARGE, NestedEntry, READABLE, Soft, SoftLayout, frame,
    leaf_size,
};
use crate::addr::{Hpa, PageSize};
use crate::memtype::MemoryType;
use crate::wx::PageState;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const EXEC_USER: u64 = 1 << 10;
const TYPE_SHIFT: u32 = 3;

const SOFT: SoftLayout = SoftLayout {
    state: 62,
    code: 11,
};

/// Intel's extended page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptFormat {
    /// Mode-based execute control is on: bit 2 is for supervisor-mode linear
    /// addresses, bit 10 for user-mode ones.
    pub mbec: bool,
}

const RIGHTS: u64 = READ | WRITE | EXEC | EXEC_USER;

/// The bits of each state: its rights, and the state in the note. First without
/// MBEC, then with it.
const STATES: [[u64; 4]; 2] = {
    let mut states = [[0; 4]; 2];
    let mut index = 0_u8;
    while index < 8 {
        let mbec = index >= 4;
        let state = PageState::from_bits(index);
        let note = Soft {
            state,
            bounces: 0,
            code: false,
        };
        let rights = EptFormat { mbec }.right_bits(state.access(mbec));
        states[mbec as usize][(index & 3) as usize] = rights | SOFT.pack(note);
        index += 1;
    }
    states
};

impl EptFormat {
    /// The bits of rights that are [`Access::legal`].
    #[inline]
    const fn right_bits(self, access: Access) -> u64 {
        let mut rights = 0;
        if access.contains(Access::READ) {
            rights |= READ;
        }
        if access.contains(Access::WRITE) {
            rights |= WRITE;
        }
        if access.contains(Access::EXEC_KERNEL) {
            rights |= EXEC;
        }
        if self.mbec && access.contains(Access::EXEC_USER) {
            rights |= EXEC_USER;
        }
        rights
    }

    /// The bits of which one at least makes an entry present.
    const fn present(self) -> u64 {
        READ | WRITE | EXEC | if self.mbec { EXEC_USER } else { 0 }
    }
}

impl NestedEntry for EptFormat {
    fn table(&self, hpa: Hpa) -> u64 {
        let user = if self.mbec { EXEC_USER } else { 0 };
        frame(hpa, PageSize::Size4K) | READ | WRITE | EXEC | user
    }

    #[inline]
    fn leaf(&self, hpa: Hpa, size: PageSize, access: Access, mt: MemoryType, soft: Soft) -> u64 {
        let rights = self.right_bits(access.legal());
        if rights == 0 {
            return 0;
        }
        let large = if matches!(size, PageSize::Size4K) {
            0
        } else {
            LARGE
        };
        frame(hpa, size) | rights | large | (u64::from(mt.bits()) << TYPE_SHIFT) | SOFT.pack(soft)
    }

    #[inline]
    fn decode(&self, raw: u64, level: u8) -> Decoded {
        if raw & self.present() == 0 {
            return Decoded::Absent;
        }
        let Some(size) = leaf_size(raw, level) else {
            return Decoded::Table(Hpa::new(raw & ADDRESS));
        };
        let mut access = Access::empty();
        access.set(Access::READ, raw & READ != 0);
        access.set(Access::WRITE, raw & WRITE != 0);
        access.set(Access::EXEC_KERNEL, raw & EXEC != 0);
        let user = if self.mbec { EXEC_USER } else { EXEC };
        access.set(Access::EXEC_USER, raw & user != 0);
        Decoded::Leaf {
            hpa: Hpa::new(raw & ADDRESS).align_down(size),
            size,
            access,
            mt: MemoryType::from_bits((raw >> TYPE_SHIFT & 7) as u8).unwrap_or(MemoryType::Uc),
            soft: SOFT.unpack(raw),
        }
    }

    #[inline]
    fn next_table(&self, raw: u64, level: u8) -> Option<Hpa> {
        if raw & self.present() == 0 || leaf_size(raw, level).is_some() {
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
        leaf & RIGHTS
    }

    #[inline]
    fn restate(&self, leaf: u64, state: PageState, bounces: u8) -> u64 {
        let states = &STATES[usize::from(self.mbec)];
        (leaf & !(RIGHTS | SOFT.turning()))
            | states[usize::from(state.bits() & 3)]
            | u64::from(bounces) << BOUNCES_SHIFT
    }

    #[inline]
    fn with_rights(&self, leaf: u64, access: Access) -> u64 {
        (leaf & !RIGHTS) | self.right_bits(access.legal())
    }

    #[inline]
    fn maps_identically(&self, leaf: u64, page: u64) -> bool {
        (leaf ^ page) & (ADDRESS | READABLE) == 0
    }

    fn separates_user_fetches(&self) -> bool {
        self.mbec
    }

    fn has_memory_types(&self) -> bool {
        true
    }
}

/// The EPT pointer for a four-level table at `root`: walks are write-back
/// cached; `ad` turns on the accessed and dirty flags. Intel SDM volume 3,
/// "Extended-Page-Table Pointer".
#[must_use]
pub const fn eptp(root: Hpa, ad: bool) -> u64 {
    const WRITE_BACK: u64 = 6;
    const WALK_LENGTH_MINUS_ONE: u64 = 3 << 3;
    (root.as_u64() & ADDRESS) | WRITE_BACK | WALK_LENGTH_MINUS_ONE | ((ad as u64) << 6)
}
