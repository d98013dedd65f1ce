//! Addresses and page sizes.
//!
//! Guest-physical, host-physical and guest-virtual addresses are distinct
//! types without any implicit conversion: mixing them up is the commonest
//! fault in published hypervisors, and the compiler finds it for free. The one
//! place where a guest-physical address becomes a host-physical one is
//! [`Hpa::identity`].
//!
//! Plain values; may be used anywhere, in any mode.

/// log2 of the smallest page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in the smallest page.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Address bits that a four-level table translates: 9 per level and the page
/// offset (Intel SDM volume 3, "EPT Translation Mechanism").
pub const REACH_BITS: u8 = 48;

const OFFSET_MASK: u64 = PAGE_BYTES - 1;

/// The three sizes of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KB, an entry of a page table.
    Size4K,
    /// 2 MB, an entry of a page directory.
    Size2M,
    /// 1 GB, an entry of a page-directory-pointer table.
    Size1G,
}

impl PageSize {
    /// Bytes of the page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    /// Level of the table that holds such a leaf: 1, 2 or 3; the root is 4.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }

    /// The size of a leaf at `level`; `None` where there are no leaves.
    #[must_use]
    pub const fn at_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }

    /// 4 KB pages in a page of this size.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value of the address.
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The first byte of the 4 KB page that holds the address.
            #[must_use]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !OFFSET_MASK)
            }

            /// Offset in the 4 KB page, in bytes.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & OFFSET_MASK
            }

            /// Whether a page of `size` may begin here.
            #[must_use]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }

            /// The first byte of the page of `size` that holds the address.
            #[must_use]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }
        }
    };
}

address! {
    /// A guest-physical address.
    Gpa
}
address! {
    /// A host-physical address: what the memory controller sees.
    Hpa
}
address! {
    /// A guest-virtual (linear) address.
    Gva
}

/// A page frame number: a physical address divided by 4 KB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// The frame with this number.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The frame number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The first byte of the frame, as the guest names it.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }

    /// The first byte of the frame, as the memory controller names it.
    #[must_use]
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }
}

impl Gpa {
    /// The frame that holds the address.
    #[must_use]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

impl Hpa {
    /// The frame that holds the address.
    #[must_use]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// The machine maps physical memory one to one: this is where that is said.
    #[must_use]
    pub const fn identity(gpa: Gpa) -> Self {
        Self(gpa.0)
    }
}

/// Index of `gpa`'s entry in the table of `level` (1 to 4); always below 512.
#[must_use]
pub const fn table_index(gpa: Gpa, level: u8) -> usize {
    let level = if level == 0 { 1 } else { level };
    let shift = PAGE_SHIFT + 9 * ((level - 1) & 3) as u32;
    ((gpa.0 >> shift) & 0x1ff) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_partition_the_address() {
        let gpa = Gpa::new((3 << 39) | (5 << 30) | (7 << 21) | (11 << 12) | 0xabc);
        assert_eq!(table_index(gpa, 4), 3);
        assert_eq!(table_index(gpa, 3), 5);
        assert_eq!(table_index(gpa, 2), 7);
        assert_eq!(table_index(gpa, 1), 11);
        assert_eq!(gpa.page_offset(), 0xabc);
        assert_eq!(gpa.page_base().page_offset(), 0);
        assert_eq!(gpa.pfn().gpa(), gpa.page_base());
        assert_eq!(table_index(Gpa::new(u64::MAX), 4), 511);
    }

    #[test]
    fn frames_are_numbered_from_either_side() {
        let frame = Pfn::new(0x12_3456);
        assert_eq!(frame.as_u64(), 0x12_3456);
        assert_eq!(frame.gpa(), Gpa::new(0x1_2345_6000));
        assert_eq!(frame.hpa(), Hpa::new(0x1_2345_6000));
        assert_eq!(Hpa::new(0x1_2345_6fff).pfn(), frame);
        assert_eq!(Gpa::new(0x1_2345_6fff).pfn(), frame);
    }

    #[test]
    fn sizes_and_levels_agree() {
        for level in 1..=3 {
            let size = PageSize::at_level(level).unwrap();
            assert_eq!(size.level(), level);
            assert_eq!(size.bytes(), 1 << (12 + 9 * (u32::from(level) - 1)));
        }
        assert_eq!(PageSize::at_level(4), None);
        assert!(Gpa::new(0x4020_0000).is_aligned(PageSize::Size2M));
        assert!(!Gpa::new(0x4020_0000).is_aligned(PageSize::Size1G));
    }
}
