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

use crate::addr::{Hpa, PageSize};
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
        /// Instruction fetches through supervisor-mode linear addresses.
        const EXEC_KERNEL = 4;
        /// Instruction fetches through user-mode linear addresses. One right
        /// with [`Self::EXEC_KERNEL`] where the processor does not separate
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
    state_low: u32,
    state_high: u32,
    code: u32,
}

/// Lowest bit of the eight-bit counter, in both formats.
const BOUNCES_SHIFT: u32 = 52;

impl SoftLayout {
    fn pack(self, soft: Soft) -> u64 {
        let state = u64::from(soft.state.bits());
        ((state & 1) << self.state_low)
            | ((state >> 1) << self.state_high)
            | (u64::from(soft.code) << self.code)
            | (u64::from(soft.bounces) << BOUNCES_SHIFT)
    }

    fn unpack(self, raw: u64) -> Soft {
        let bit = |position: u32| ((raw >> position) & 1) as u8;
        Soft {
            state: PageState::from_bits(bit(self.state_low) | (bit(self.state_high) << 1)),
            bounces: ((raw >> BOUNCES_SHIFT) & 0xff) as u8,
            code: bit(self.code) == 1,
        }
    }
}

/// Bits 51 to 12 of an entry: the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// "This entry is a leaf", in levels 2 and 3 of both formats.
const LARGE: u64 = 1 << 7;

fn frame(hpa: Hpa, size: PageSize) -> u64 {
    hpa.align_down(size).as_u64() & ADDRESS
}

/// The size of the leaf that `raw` is at `level`, by the large-page bit.
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
pub trait NestedEntry {
    /// An entry that leads to the table at `hpa`, with every right: rights are
    /// given by leaves alone.
    fn table(&self, hpa: Hpa) -> u64;

    /// A leaf of `size`; `hpa` is rounded down to that size. Without any right
    /// the result is an absent entry.
    fn leaf(&self, hpa: Hpa, size: PageSize, access: Access, mt: MemoryType, soft: Soft) -> u64;

    /// Reads an entry found in a table of `level` (1 to 4).
    fn decode(&self, raw: u64, level: u8) -> Decoded;

    /// Whether user-mode and kernel-mode fetches are separate rights.
    fn separates_user_fetches(&self) -> bool;

    /// Whether entries carry memory types. Where they do not, the processor
    /// applies the MTRRs itself.
    fn has_memory_types(&self) -> bool;
}
