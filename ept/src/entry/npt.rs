//! AMD's entries: APM volume 2, "Nested Paging", which are those of "Long-Mode
//! Page Translation".
//!
//! Every guest access walks these tables as a user access, so the U bit is
//! always set; "no execute" is an inverted right. There is one execute right:
//! `EXEC_KERNEL` decides. There is no memory type: PAT index 0 of the host,
//! write-back, combines with the guest's PAT, and the processor applies the
//! MTRRs itself.
//!
//! The accessed and dirty bits are set beforehand, so that the processor never
//! writes an entry behind our back. The software note uses the available bits 9-11
//! and 52-58, and bit 59, which is available while host CR4.PKE is 0.
//!
//! **With the guest mode execute trap** ("Guest Mode Execute Trap Extension") the
//! guest's supervisor, by its privilege level and not by the linear address,
//! cannot fetch from a user page. The U bit of a page is the AND of those on the
//! way to it, so entries that lead to tables keep it and the leaf decides:
//!
//! | U | NX | supervisor | user | for |
//! |---|---|---|---|---|
//! | 1 | 0 | data | data and fetches | data |
//! | 1 | 1 | data | data | a page that is held |
//! | 0 | 0 | data and fetches | not promised | code |
//!
//! Whether user mode, and a walk of the guest's page tables, may touch a page with
//! U = 0 is read in two ways. So such a leaf promises the user nothing
//! ([`Access::EXEC_USER`] is not said to be there), and whoever is refused is given
//! a user page ([`crate::wx::on_user`]). No encoding is sure to give fetches to
//! both: [`PageState::Exempt`] has U = 0 as well, since it was made for the kernel.
//! The fourth pair, U = 0 with NX = 1, is never built.

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

const RIGHTS: u64 = WRITE | USER | NO_EXECUTE;
/// From the U bit to the NX bit.
const USER_TO_NX: u32 = NO_EXECUTE.trailing_zeros() - USER.trailing_zeros();

/// The bits of each state: its rights, and the state in the note. First without
/// the guest mode execute trap, then with it.
const STATES: [[u64; 4]; 2] = {
    let mut states = [[0; 4]; 2];
    let mut index = 0_u8;
    while index < 8 {
        let gmet = index >= 4;
        let state = PageState::from_bits(index);
        let note = Soft {
            state,
            bounces: 0,
            code: false,
        };
        let rights = NptFormat { gmet }.right_bits(state.access(gmet));
        states[gmet as usize][(index & 3) as usize] = rights | SOFT.pack(note);
        index += 1;
    }
    states
};

/// AMD's nested page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptFormat {
    /// The guest mode execute trap is on: the guest's supervisor cannot fetch from
    /// a page with U = 1.
    pub gmet: bool,
}

impl NptFormat {
    /// The bits of rights that have [`Access::READ`] among them.
    #[inline]
    const fn right_bits(self, access: Access) -> u64 {
        let write = if access.contains(Access::WRITE) {
            WRITE
        } else {
            0
        };
        let fetch = if access.contains(Access::EXEC_KERNEL) {
            if self.gmet { 0 } else { USER }
        } else if self.gmet && access.contains(Access::EXEC_USER) {
            USER
        } else {
            USER | NO_EXECUTE
        };
        write | fetch
    }
}

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
        let mut raw = frame(hpa, size) | PRESENT | ACCESSED | DIRTY | SOFT.pack(soft);
        raw |= self.right_bits(access);
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
        if raw & NO_EXECUTE == 0 {
            access |= match (self.gmet, raw & USER == 0) {
                (false, _) => Access::EXEC_KERNEL.union(Access::EXEC_USER),
                (true, true) => Access::EXEC_KERNEL,
                (true, false) => Access::EXEC_USER,
            };
        }
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
        // U = 0 is the kernel's fetch, U = 1 with NX = 0 the user's, or the only one
        // there is: without the trap U is always 1.
        (leaf ^ (leaf & USER) << USER_TO_NX ^ USER) & RIGHTS
    }

    #[inline]
    fn restate(&self, leaf: u64, state: PageState, bounces: u8) -> u64 {
        let states = &STATES[usize::from(self.gmet)];
        (leaf & !(RIGHTS | SOFT.turning()))
            | states[usize::from(state.bits() & 3)]
            | u64::from(bounces) << BOUNCES_SHIFT
    }

    #[inline]
    fn with_rights(&self, leaf: u64, access: Access) -> u64 {
        (leaf & !RIGHTS) | self.right_bits(access)
    }

    #[inline]
    fn maps_identically(&self, leaf: u64, page: u64) -> bool {
        (leaf ^ page) & (ADDRESS | READABLE) == 0
    }

    fn separates_user_fetches(&self) -> bool {
        self.gmet
    }

    #[inline]
    fn rights_of(&self, state: PageState) -> Access {
        let rights = state.access(self.gmet);
        if self.gmet && rights.contains(Access::EXEC_KERNEL) {
            rights.difference(Access::EXEC_USER)
        } else {
            rights
        }
    }

    fn has_memory_types(&self) -> bool {
        false
    }
}
