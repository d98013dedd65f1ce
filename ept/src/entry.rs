//! Table entries as values.
//!
//! One table algorithm serves two processor vendors: [`NestedEntry`] builds and
//! reads the 64-bit values, [`EptFormat`] in Intel's layout, [`NptFormat`] in
//! AMD's. A format never touches a table; an entry is built whole and stored
//! once by the caller. Pure values, usable in any mode.
//!
//! What the hardware would answer with a misconfiguration cannot be built:
//! a right without the right to read gains it, addresses are masked, types are
//! an enum.

mod ept;
mod npt;

pub use ept::{EptFormat, eptp};
pub use npt::NptFormat;

use crate::addr::{Gpa, Hpa, PAGE_BYTES, PageSize};
use crate::memtype::MemoryType;
use crate::wx::PageState;

bitflags::bitflags! {
    /// Rights of a page.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Loads.
        const READ = 1;
        /// Stores; includes the processor's own updates of page tables.
        const WRITE = 2;
        /// Instruction fetches by the kernel. What that is, the vendors say
        /// differently: for Intel a fetch through a supervisor-mode linear
        /// address, for AMD one at a privilege level other than 3, whatever the
        /// address.
        const EXEC_KERNEL = 4;
        /// Instruction fetches by user mode, or through its linear addresses. One
        /// right with [`Self::EXEC_KERNEL`] where the processor does not separate
        /// them; then `EXEC_KERNEL` alone decides.
        const EXEC_USER = 8;
    }
}

impl Access {
    /// Loads and stores.
    pub const RW: Self = Self::READ.union(Self::WRITE);

    /// Whether the kernel could both write and execute.
    #[must_use]
    pub const fn is_writable_and_executable(self) -> bool {
        self.contains(Self::WRITE.union(Self::EXEC_KERNEL))
    }

    /// `READ` added to any other right: neither format can do without
    /// (execute-only pages are an optional ability that is not used).
    pub(crate) const fn legal(self) -> Self {
        if self.is_empty() {
            self
        } else {
            self.union(Self::READ)
        }
    }
}

/// The monitor's own note in a leaf, kept in bits that the processor ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Soft {
    /// State of the page in the transition rules.
    pub state: PageState,
    /// How often the page changed between writable and executable lately.
    pub bounces: u8,
    /// The frame holds code of a registered module.
    pub code: bool,
}

/// Where an entry keeps its [`Soft`] value.
#[derive(Clone, Copy)]
struct SoftLayout {
    /// Lowest of the two bits of the state.
    state: u32,
    /// The bit of [`Soft::code`].
    code: u32,
}

/// Lowest bit of the eight-bit counter, in both formats.
const BOUNCES_SHIFT: u32 = 52;

impl SoftLayout {
    /// The bits of state and counter, which a change of state replaces.
    const fn turning(self) -> u64 {
        3 << self.state | 0xff << BOUNCES_SHIFT
    }

    #[inline]
    fn state(self, raw: u64) -> PageState {
        PageState::from_bits((raw >> self.state & 3) as u8)
    }

    #[inline]
    const fn pack(self, soft: Soft) -> u64 {
        ((soft.state.bits() as u64) << self.state)
            | ((soft.code as u64) << self.code)
            | ((soft.bounces as u64) << BOUNCES_SHIFT)
    }

    #[inline]
    fn unpack(self, raw: u64) -> Soft {
        Soft {
            state: self.state(raw),
            bounces: ((raw >> BOUNCES_SHIFT) & 0xff) as u8,
            code: raw >> self.code & 1 == 1,
        }
    }
}

/// Bits 51 to 12 of an entry: the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit 0: the right to read, or present. Every leaf that is built here has it.
const READABLE: u64 = 1;
/// "This entry is a leaf", in levels 2 and 3 of both formats.
const LARGE: u64 = 1 << 7;

#[inline]
fn frame(hpa: Hpa, size: PageSize) -> u64 {
    hpa.align_down(size).as_u64() & ADDRESS
}

/// The size of the leaf that `raw` is at `level`, by the large-page bit.
#[inline]
fn leaf_size(raw: u64, level: u8) -> Option<PageSize> {
    if level == 1 || raw & LARGE != 0 {
        PageSize::at_level(level)
    } else {
        None
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// No right at all: every access is a violation.
    Absent,
    /// The next table.
    Table(Hpa),
    /// A page.
    Leaf {
        /// First byte of the frame.
        hpa: Hpa,
        /// Size of the page.
        size: PageSize,
        /// Rights.
        access: Access,
        /// Memory type.
        mt: MemoryType,
        /// The monitor's note.
        soft: Soft,
    },
}

/// A format of nested page-table entries.
///
/// In both vendors' formats an address is kept in place, in bits 51 to 12, so
/// that leaves of neighbouring frames differ by their distance.
pub trait NestedEntry {
    /// An entry that leads to the table at `hpa`, with every right: rights are
    /// given by leaves alone.
    fn table(&self, hpa: Hpa) -> u64;

    /// A leaf of `size`; `hpa` is rounded down to that size. Without any right
    /// the result is an absent entry.
    fn leaf(&self, hpa: Hpa, size: PageSize, access: Access, mt: MemoryType, soft: Soft) -> u64;

    /// Reads an entry found in a table of `level` (1 to 4).
    fn decode(&self, raw: u64, level: u8) -> Decoded;

    /// The next table, if the entry leads to one: a walk asks no more of the
    /// entries on its way than this. Says the same as [`Self::decode`].
    fn next_table(&self, raw: u64, level: u8) -> Option<Hpa>;

    /// State in the note of a leaf.
    fn state(&self, leaf: u64) -> PageState;

    /// The note of a leaf.
    fn soft(&self, leaf: u64) -> Soft;

    /// The rights of a leaf as a set of bits, comparable with those of another
    /// leaf of this format and nothing else.
    fn rights(&self, leaf: u64) -> u64;

    /// The present 4 KB leaf `leaf` with the rights of `state` and these two
    /// parts of the note; all else stays. What [`Self::leaf`] would build.
    fn restate(&self, leaf: u64, state: PageState, bounces: u8) -> u64;

    /// The present 4 KB leaf `leaf` with the rights `access` instead of its own;
    /// the note stays.
    fn with_rights(&self, leaf: u64, access: Access) -> u64;

    /// Whether the 4 KB leaf `leaf` is present and maps the frame that `gpa`
    /// names, given as the first address of the page with bit 0 set.
    fn maps_identically(&self, leaf: u64, page: u64) -> bool;

    /// The 4 KB frame that a leaf in a table of `level` shows at `gpa`; `None` if
    /// the entry is absent.
    #[inline]
    fn frame(&self, leaf: u64, level: u8, gpa: Gpa) -> Option<Hpa> {
        let offset = PageSize::at_level(level)?.bytes() - PAGE_BYTES;
        let inside = gpa.as_u64() & offset;
        (leaf & READABLE != 0).then_some(Hpa::new(leaf & ADDRESS & !offset | inside))
    }

    /// Whether user-mode and kernel-mode fetches are separate rights.
    fn separates_user_fetches(&self) -> bool;

    /// The rights that a leaf of this state is sure to give: those of the state,
    /// less what the format cannot promise beside them.
    #[inline]
    fn rights_of(&self, state: PageState) -> Access {
        state.access(self.separates_user_fetches())
    }

    /// Whether entries carry memory types. Where they do not, the processor
    /// applies the MTRRs itself.
    fn has_memory_types(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageSize::{Size1G, Size2M, Size4K};

    const TYPES: [MemoryType; 5] = [
        MemoryType::Uc,
        MemoryType::Wc,
        MemoryType::Wt,
        MemoryType::Wp,
        MemoryType::Wb,
    ];

    const USER_DATA: Access = Access::RW.union(Access::EXEC_USER);

    fn soft(state: u8, bounces: u8, code: bool) -> Soft {
        Soft {
            state: PageState::from_bits(state),
            bounces,
            code,
        }
    }

    #[test]
    fn ept_bits_are_those_of_the_manual() {
        let plain = EptFormat { mbec: false };
        let mbec = EptFormat { mbec: true };
        let hpa = Hpa::new(0x0000_007f_c000_0000);
        let none = Soft::default();
        assert_eq!(plain.table(hpa), 0x0000_007f_c000_0007);
        assert_eq!(mbec.table(hpa), 0x0000_007f_c000_0407);
        let rw = Access::RW;
        assert_eq!(
            plain.leaf(hpa, Size1G, rw, MemoryType::Wb, none),
            0x0000_007f_c000_00b3
        );
        assert_eq!(
            mbec.leaf(hpa, Size2M, rw | Access::EXEC_USER, MemoryType::Uc, none),
            0x0000_007f_c000_0483
        );
        let rx = Access::READ | Access::EXEC_KERNEL;
        assert_eq!(
            mbec.leaf(hpa, Size4K, rx, MemoryType::Wp, none),
            0x0000_007f_c000_002d
        );
        // Without MBEC user execution alone is no right, and bit 10 stays 0.
        assert_eq!(
            plain.leaf(hpa, Size4K, rw | Access::EXEC_USER, MemoryType::Wb, none),
            0x0000_007f_c000_0033
        );
        assert_eq!(
            plain.leaf(hpa, Size4K, rw, MemoryType::Uc, soft(3, 0xff, true)),
            0xcff0_007f_c000_0803
        );
    }

    #[test]
    fn npt_bits_are_those_of_the_manual() {
        let plain = NptFormat { gmet: false };
        let gmet = NptFormat { gmet: true };
        let hpa = Hpa::new(0x0000_007f_c000_0000);
        let none = Soft::default();
        assert_eq!(plain.table(hpa), 0x0000_007f_c000_0027);
        assert_eq!(
            plain.leaf(hpa, Size2M, Access::RW, MemoryType::Uc, none),
            0x8000_007f_c000_00e7
        );
        assert_eq!(
            plain.leaf(hpa, Size4K, Access::EXEC_KERNEL, MemoryType::Wb, none),
            0x0000_007f_c000_0065
        );
        assert_eq!(
            plain.leaf(hpa, Size4K, Access::RW, MemoryType::Wb, soft(3, 0xff, true)),
            0x8ff0_007f_c000_0e67
        );
        // Without the trap user execution alone is no right.
        assert_eq!(
            plain.leaf(hpa, Size4K, USER_DATA, MemoryType::Wb, none),
            0x8000_007f_c000_0067
        );
        // With it U tells whose code a page may be; tables stay as they are.
        assert_eq!(gmet.table(hpa), plain.table(hpa));
        assert_eq!(
            gmet.leaf(hpa, Size2M, USER_DATA, MemoryType::Wb, none),
            0x0000_007f_c000_00e7
        );
        let rx = Access::READ | Access::EXEC_KERNEL;
        for code in [rx, rx | Access::EXEC_USER] {
            assert_eq!(
                gmet.leaf(hpa, Size4K, code, MemoryType::Wb, none),
                0x0000_007f_c000_0061
            );
        }
        assert_eq!(
            gmet.leaf(hpa, Size4K, Access::READ, MemoryType::Wb, none),
            0x8000_007f_c000_0065
        );
        assert_eq!(
            gmet.leaf(
                hpa,
                Size4K,
                Access::all(),
                MemoryType::Wb,
                soft(3, 0, false)
            ),
            0x0000_007f_c000_0663
        );
        assert_eq!(
            gmet.leaf(hpa, Size4K, Access::RW, MemoryType::Wb, none),
            0x8000_007f_c000_0067
        );
    }

    /// The states in both of AMD's ways: U, W and NX.
    #[test]
    fn npt_states_are_those_of_the_table() {
        let hpa = Hpa::new(0x1000);
        for (gmet, wanted) in [
            (false, [0b111, 0b100, 0b101, 0b110]),
            (true, [0b110, 0b000, 0b101, 0b010]),
        ] {
            let format = NptFormat { gmet };
            for (bits, wanted) in (0..).zip(wanted) {
                let state = PageState::from_bits(bits);
                let rights = state.access(gmet);
                let raw = format.leaf(hpa, Size4K, rights, MemoryType::Wb, soft(bits, 0, false));
                let found = raw & 4 | raw & 2 | raw >> 63;
                assert_eq!(found, wanted, "{state:?} {gmet}");
            }
        }
    }

    #[test]
    fn the_ept_pointer_says_four_levels_and_write_back() {
        assert_eq!(eptp(Hpa::new(0x1234_5000), false), 0x1234_501e);
        assert_eq!(eptp(Hpa::new(0x1234_5fff), true), 0x1234_505e);
    }

    /// One right to fetch: the kernel's.
    fn one_fetch(mut access: Access) -> Access {
        access.set(Access::EXEC_USER, access.contains(Access::EXEC_KERNEL));
        access
    }

    /// The kernel's right to fetch leaves nothing sure for the user.
    fn either_fetch(mut access: Access) -> Access {
        if access.contains(Access::EXEC_KERNEL) {
            access.remove(Access::EXEC_USER);
        }
        access
    }

    /// Every leaf that can be built: what the processor would call a
    /// misconfiguration is not among them, and it reads back as built.
    /// `said` is what the format makes of rights.
    fn each_leaf(
        format: &impl NestedEntry,
        said: impl Fn(Access) -> Access,
        check: impl Fn(u64, PageSize),
    ) {
        for size in [Size4K, Size2M, Size1G] {
            for rights in 0..16 {
                let access = Access::from_bits_truncate(rights);
                for mt in TYPES {
                    for note in 0..2048_u32 {
                        let soft = soft(
                            (note & 3) as u8,
                            ((note >> 2) & 0xff) as u8,
                            note >> 10 == 1,
                        );
                        let hpa = Hpa::new(0x000f_ffff_c000_0000);
                        let raw = format.leaf(hpa, size, access, mt, soft);
                        let expected = said(access.legal());
                        if access.is_empty() {
                            assert_eq!(raw, 0);
                            continue;
                        }
                        check(raw, size);
                        let mt = if format.has_memory_types() {
                            mt
                        } else {
                            MemoryType::Wb
                        };
                        assert_eq!(
                            format.decode(raw, size.level()),
                            Decoded::Leaf {
                                hpa,
                                size,
                                access: expected,
                                mt,
                                soft,
                            }
                        );
                    }
                }
            }
        }
    }

    /// The exit path's shortcuts on a 4 KB leaf build what [`NestedEntry::leaf`]
    /// builds, and read what [`NestedEntry::decode`] reads.
    fn shortcuts(format: &impl NestedEntry) {
        let hpa = Hpa::new(0x000f_edcb_a987_6000);
        let states = [0, 1, 2, 3].map(PageState::from_bits);
        let rights_of = |state: PageState| state.access(format.separates_user_fetches());
        let build = |access, mt, soft: Soft| format.leaf(hpa, Size4K, access, mt, soft);
        for mt in TYPES {
            for note in 0..2048_u32 {
                let old = soft(
                    (note & 3) as u8,
                    ((note >> 2) & 0xff) as u8,
                    note >> 10 == 1,
                );
                let raw = build(rights_of(old.state), mt, old);
                assert_eq!(format.state(raw), old.state);
                let Decoded::Leaf { access, .. } = format.decode(raw, 1) else {
                    panic!("{raw:#x} is a leaf");
                };
                assert_eq!(format.rights_of(old.state), access);
                assert_eq!(format.soft(raw), old);
                for state in states {
                    let new = Soft { state, ..old };
                    let bounces = old.bounces.wrapping_add(1);
                    assert_eq!(
                        format.restate(raw, state, bounces),
                        build(rights_of(state), mt, Soft { bounces, ..new })
                    );
                    // Compared as sets, rights say what a flush token needs.
                    let other = build(rights_of(state), mt, new);
                    let (was, is) = (format.rights_of(old.state), format.rights_of(state));
                    let taken = format.rights(raw) & !format.rights(other) != 0;
                    assert_eq!(taken, !is.contains(was), "{:?} {state:?}", old.state);
                    assert_eq!(format.rights(raw) == format.rights(other), was == is);
                }
                for bits in 1..16 {
                    let access = Access::from_bits_truncate(bits);
                    if access.is_empty() || access == Access::EXEC_USER {
                        continue;
                    }
                    assert_eq!(format.with_rights(raw, access), build(access, mt, old));
                }
                let page = hpa.as_u64() | 1;
                assert!(format.maps_identically(raw, page));
                assert!(!format.maps_identically(0, page));
                assert!(!format.maps_identically(raw & !1, page));
                for bit in 12..52 {
                    assert!(!format.maps_identically(raw, page ^ 1 << bit), "{bit}");
                }
            }
        }
    }

    #[test]
    fn shortcuts_agree_with_the_long_way() {
        for mbec in [false, true] {
            shortcuts(&EptFormat { mbec });
        }
        for gmet in [false, true] {
            shortcuts(&NptFormat { gmet });
        }
    }

    #[test]
    fn no_ept_misconfiguration_can_be_built() {
        for mbec in [false, true] {
            let said = |access| if mbec { access } else { one_fetch(access) };
            each_leaf(&EptFormat { mbec }, said, |raw, size| {
                assert_eq!(raw & 1, 1, "{raw:#x}: a right without read");
                assert!([0, 1, 4, 5, 6].contains(&(raw >> 3 & 7)));
                assert_eq!(raw >> 7 & 1, u64::from(size != Size4K));
                // IPAT, accessed, dirty, shadow stack, sub-page write.
                assert_eq!(raw & (0x340 | 3 << 60), 0, "{raw:#x}");
                assert!(mbec || raw >> 10 & 1 == 0);
            });
        }
    }

    fn npt_leaf(raw: u64, size: PageSize) {
        // Present, accessed and dirty; PAT index 0, not global.
        assert_eq!(raw & 0x61, 0x61, "{raw:#x}");
        assert_eq!(raw & 0x118, 0, "{raw:#x}");
        assert_eq!(raw >> 7 & 1, u64::from(size != Size4K));
        // Bits 60 to 62 could become a protection key.
        assert_eq!(raw & 7 << 60, 0, "{raw:#x}");
    }

    #[test]
    fn every_npt_leaf_is_a_user_page() {
        each_leaf(&NptFormat { gmet: false }, one_fetch, |raw, size| {
            npt_leaf(raw, size);
            assert_eq!(raw & 4, 4, "{raw:#x}");
        });
    }

    #[test]
    fn with_the_trap_only_code_is_no_user_page() {
        each_leaf(&NptFormat { gmet: true }, either_fetch, |raw, size| {
            npt_leaf(raw, size);
            // A page that is not the user's can be executed; none is without use.
            assert!(raw & 4 != 0 || raw >> 63 == 0, "{raw:#x}");
        });
    }

    #[test]
    fn tables_and_absent_entries_are_told_apart() {
        let hpa = Hpa::new(0x1234_5000);
        let ept = EptFormat { mbec: true };
        let npt = [false, true].map(|gmet| NptFormat { gmet });
        for level in 2..=4 {
            assert_eq!(ept.decode(ept.table(hpa), level), Decoded::Table(hpa));
            for npt in npt {
                assert_eq!(npt.decode(npt.table(hpa), level), Decoded::Table(hpa));
            }
        }
        for level in 1..=4 {
            assert_eq!(ept.decode(0x1234_5000 | 6 << 3, level), Decoded::Absent);
            for npt in npt {
                assert_eq!(npt.decode(0x1234_5006, level), Decoded::Absent);
            }
        }
        // One right is enough to make an entry present; bit 10 is one with MBEC
        // only.
        let fetch = Access::EXEC_KERNEL | Access::EXEC_USER;
        for (bit, without, with) in [
            (0, Some(Access::READ), Access::READ),
            (1, Some(Access::WRITE), Access::WRITE),
            (2, Some(fetch), Access::EXEC_KERNEL),
            (10, None, Access::EXEC_USER),
        ] {
            for (mbec, expected) in [(false, without), (true, Some(with))] {
                let found = match (EptFormat { mbec }).decode(1 << bit, 1) {
                    Decoded::Leaf { access, .. } => Some(access),
                    Decoded::Absent | Decoded::Table(_) => None,
                };
                assert_eq!(found, expected, "{bit} {mbec}");
            }
        }
        // Reserved values must not trip the reader either, and the walk's short
        // question has the same answer.
        let next = |decoded| match decoded {
            Decoded::Table(hpa) => Some(hpa),
            Decoded::Absent | Decoded::Leaf { .. } => None,
        };
        let plain = EptFormat { mbec: false };
        for bits in 0..4096 {
            for raw in [bits, bits | 0x1234_5000, bits | 1 << 63, !bits] {
                for level in [0, 1, 2, 3, 4, 5, 255] {
                    let answer = next(ept.decode(raw, level));
                    assert_eq!(ept.next_table(raw, level), answer);
                    let answer = next(plain.decode(raw, level));
                    assert_eq!(plain.next_table(raw, level), answer);
                    for npt in npt {
                        let answer = next(npt.decode(raw, level));
                        assert_eq!(npt.next_table(raw, level), answer);
                    }
                }
            }
        }
    }
}
