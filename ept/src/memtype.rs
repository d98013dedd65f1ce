//! Memory types from the MTRRs.
//!
//! With nested paging on, an Intel processor takes the memory type of a
//! guest-physical address from the EPT entry and not from the MTRRs, so the
//! entries must say what the MTRRs said. A wrong type is a hang, a corrupted
//! frame buffer or a machine check. The rules are Intel SDM volume 3, "Memory
//! Type Range Registers", sections "MTRR Precedences" and "Range Size and Base
//! Address Alignment".
//!
//! SMRR is not an MTRR: it does not apply outside SMM and is no input here.
//!
//! [`MtrrState`] is owned by the hypervisor and shared by all cores. The
//! registers in it are atomics so that a guest's WRMSR can be followed from
//! root mode through a shared reference ([`MtrrState::write`]); the writer holds
//! the transition lock, and calls `Space::retype` once the guest has set the
//! enable bit again.

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::addr::{Gpa, PAGE_BYTES, PageSize};

/// A memory type, with its encoding (Intel SDM volume 3, "Memory Types That Can
/// Be Encoded in MTRRs").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uc = 0,
    /// Write-combining.
    Wc = 1,
    /// Write-through.
    Wt = 4,
    /// Write-protected.
    Wp = 5,
    /// Write-back.
    Wb = 6,
}

impl MemoryType {
    /// The type with this encoding; `None` for the reserved ones.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Uc),
            1 => Some(Self::Wc),
            4 => Some(Self::Wt),
            5 => Some(Self::Wp),
            6 => Some(Self::Wb),
            _ => None,
        }
    }

    /// The encoding.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// Registers of fixed ranges.
pub const FIXED_REGISTERS: usize = 11;
/// The largest number of variable ranges (`IA32_MTRRCAP.VCNT` has eight bits).
pub const MAX_VARIABLE: usize = 255;

/// `IA32_MTRR_DEF_TYPE`.
pub const MSR_DEF_TYPE: u32 = 0x2ff;
/// `IA32_MTRR_PHYSBASE0`; base and mask registers alternate from here.
pub const MSR_PHYS_BASE0: u32 = 0x200;

/// The fixed-range registers in the order in which [`MtrrState`] keeps them,
/// which is the order of their addresses.
pub const MSR_FIXED: [u32; FIXED_REGISTERS] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

const CAP_FIXED: u64 = 1 << 8;
const DEF_FIXED_ENABLE: u64 = 1 << 10;
const DEF_ENABLE: u64 = 1 << 11;
const MASK_VALID: u64 = 1 << 11;
const FIXED_END: u64 = 1 << 20;

/// The memory-type range registers of the machine, as raw values.
#[derive(Debug)]
pub struct MtrrState {
    cap: u64,
    def_type: AtomicU64,
    fixed: [AtomicU64; FIXED_REGISTERS],
    variable: [(AtomicU64, AtomicU64); MAX_VARIABLE],
    count: AtomicU16,
    phys_bits: u8,
}

/// The set of memory types of the variable ranges that hold an address.
#[derive(Clone, Copy, Default)]
struct TypeSet(u8);

impl TypeSet {
    const fn with(self, mt: MemoryType) -> Self {
        Self(self.0 | 1 << (mt as u8))
    }

    /// The type that results where these ranges overlap.
    fn resolve(self, default: MemoryType) -> MemoryType {
        const WT: u8 = 1 << MemoryType::Wt as u8;
        const WB: u8 = 1 << MemoryType::Wb as u8;
        match self.0 {
            0 => default,
            0b0000_0010 => MemoryType::Wc,
            0b0010_0000 => MemoryType::Wp,
            WB => MemoryType::Wb,
            WT => MemoryType::Wt,
            set if set == WT | WB => MemoryType::Wt,
            // UC wins; every other overlap is undefined and UC is the safe
            // reading of it.
            _ => MemoryType::Uc,
        }
    }
}

/// The type that a register field holds. The processor refuses reserved
/// encodings with #GP, so they cannot be there; UC is the safe reading.
const fn field(bits: u64) -> MemoryType {
    match MemoryType::from_bits((bits & 0xff) as u8) {
        Some(mt) => mt,
        None => MemoryType::Uc,
    }
}

impl MtrrState {
    /// Takes over raw register values; see [`Self::load`].
    // Inline, so that only who calls it compiles it: its frame is larger than a
    // page, and kernel images have no stack probe.
    #[inline]
    #[must_use]
    pub fn new(
        cap: u64,
        def_type: u64,
        fixed: [u64; FIXED_REGISTERS],
        variable: &[(u64, u64)],
        phys_bits: u8,
    ) -> Self {
        let mut state = Self {
            cap,
            def_type: AtomicU64::new(0),
            fixed: [const { AtomicU64::new(0) }; FIXED_REGISTERS],
            variable: [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_VARIABLE],
            count: AtomicU16::new(0),
            phys_bits,
        };
        state.load(cap, def_type, fixed, variable, phys_bits);
        state
    }

    /// Takes over raw register values: `IA32_MTRRCAP`, `IA32_MTRR_DEF_TYPE`,
    /// the fixed-range registers in the order of [`MSR_FIXED`], the (base, mask)
    /// pairs of the variable ranges (as many as `IA32_MTRRCAP.VCNT` says), and
    /// the width of a physical address in bits. In place: the structure is larger
    /// than what a kernel stack should carry, and all zeros are a valid value of
    /// it.
    pub fn load(
        &mut self,
        cap: u64,
        def_type: u64,
        fixed: [u64; FIXED_REGISTERS],
        variable: &[(u64, u64)],
        phys_bits: u8,
    ) {
        self.cap = cap;
        self.phys_bits = phys_bits.clamp(32, 52);
        *self.def_type.get_mut() = def_type;
        for (own, value) in self.fixed.iter_mut().zip(fixed) {
            *own.get_mut() = value;
        }
        let announced = (cap & 0xff) as u8;
        let given = u8::try_from(variable.len()).unwrap_or(u8::MAX);
        let count = u16::from(announced.min(given));
        for (own, &(base, mask)) in self
            .variable
            .iter_mut()
            .zip(variable)
            .take(usize::from(count))
        {
            *own.0.get_mut() = base;
            *own.1.get_mut() = mask;
        }
        *self.count.get_mut() = count;
    }

    /// Width of a physical address, in bits.
    #[must_use]
    pub const fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// Follows a guest's WRMSR. `false` if `msr` is none of the registers kept
    /// here.
    pub fn write(&self, msr: u32, value: u64) -> bool {
        match self.register(msr) {
            Some(register) => {
                register.store(value, Ordering::Release);
                true
            }
            None => false,
        }
    }

    /// The value last given for `msr`; `None` if it is none of the registers
    /// kept here.
    #[must_use]
    pub fn read(&self, msr: u32) -> Option<u64> {
        self.register(msr).map(|r| r.load(Ordering::Acquire))
    }

    fn register(&self, msr: u32) -> Option<&AtomicU64> {
        if msr == MSR_DEF_TYPE {
            return Some(&self.def_type);
        }
        if let Some(index) = MSR_FIXED.iter().position(|&fixed| fixed == msr) {
            return self.fixed.get(index);
        }
        let offset = usize::try_from(msr.checked_sub(MSR_PHYS_BASE0)?).ok()?;
        let (base, mask) = self.pairs().get(offset / 2)?;
        Some(if offset % 2 == 0 { base } else { mask })
    }

    fn pairs(&self) -> &[(AtomicU64, AtomicU64)] {
        let count = usize::from(self.count.load(Ordering::Relaxed));
        self.variable.get(..count).unwrap_or(&[])
    }

    fn address_mask(&self) -> u64 {
        let width = u64::MAX
            .checked_shr(64_u32.saturating_sub(u32::from(self.phys_bits)))
            .unwrap_or(0);
        width & !(PAGE_BYTES - 1)
    }

    /// The type of the byte at `gpa`.
    #[must_use]
    pub fn type_of(&self, gpa: Gpa) -> MemoryType {
        let def_type = self.def_type.load(Ordering::Acquire);
        if def_type & DEF_ENABLE == 0 {
            return MemoryType::Uc;
        }
        if self.fixed_enabled(def_type) && gpa.as_u64() < FIXED_END {
            return self.fixed_type(gpa);
        }
        let mut types = TypeSet::default();
        for (base, mask) in self.pairs() {
            let (base, mask) = (base.load(Ordering::Relaxed), mask.load(Ordering::Relaxed));
            if mask & MASK_VALID == 0 {
                continue;
            }
            if (gpa.as_u64() ^ base) & mask & self.address_mask() == 0 {
                types = types.with(field(base));
            }
        }
        types.resolve(field(def_type))
    }

    /// The one type of all bytes of the page of `size` around `gpa`; `None` if
    /// they differ, or might: then a smaller page must be asked for. A 4 KB page
    /// always has one type.
    ///
    /// No loop over pages: a page is a naturally aligned power of two, so a
    /// mask register that has no bit below the page's size takes all of it or
    /// nothing, and one that has takes a proper part of it or nothing.
    #[must_use]
    pub fn type_of_range(&self, gpa: Gpa, size: PageSize) -> Option<MemoryType> {
        let gpa = gpa.align_down(size);
        if matches!(size, PageSize::Size4K) {
            return Some(self.type_of(gpa));
        }
        let def_type = self.def_type.load(Ordering::Acquire);
        if def_type & DEF_ENABLE == 0 {
            return Some(MemoryType::Uc);
        }
        let inside = size.bytes() - 1;
        let (mut whole, mut part) = (TypeSet::default(), TypeSet::default());
        for (base, mask) in self.pairs() {
            let (base, mask) = (base.load(Ordering::Relaxed), mask.load(Ordering::Relaxed));
            if mask & MASK_VALID == 0 {
                continue;
            }
            let mask = mask & self.address_mask();
            if (gpa.as_u64() ^ base) & mask & !inside != 0 {
                continue;
            }
            if mask & inside == 0 {
                whole = whole.with(field(base));
            } else {
                part = part.with(field(base));
            }
        }
        let default = field(def_type);
        let mt = whole.resolve(default);
        // Each subset of the partial types may hold somewhere in the page.
        let mut subset = part.0;
        while subset != 0 {
            if TypeSet(whole.0 | subset).resolve(default) != mt {
                return None;
            }
            subset = (subset - 1) & part.0;
        }
        if gpa.as_u64() < FIXED_END && self.fixed_enabled(def_type) {
            let all = u64::from(mt.bits()) * 0x0101_0101_0101_0101;
            if self.fixed.iter().any(|r| r.load(Ordering::Relaxed) != all) {
                return None;
            }
        }
        Some(mt)
    }

    fn fixed_enabled(&self, def_type: u64) -> bool {
        self.cap & CAP_FIXED != 0 && def_type & DEF_FIXED_ENABLE != 0
    }

    /// The type below 1 MB: eight ranges a register, the lowest in the lowest
    /// byte; one register of 64 KB ranges, two of 16 KB, eight of 4 KB.
    fn fixed_type(&self, gpa: Gpa) -> MemoryType {
        let address = gpa.as_u64() & (FIXED_END - 1);
        let (register, range) = match address {
            0..0x8_0000 => (0, address >> 16),
            0x8_0000..0xc_0000 => (1 + ((address - 0x8_0000) >> 17), address >> 14),
            _ => (3 + ((address - 0xc_0000) >> 15), address >> 12),
        };
        let value = usize::try_from(register)
            .ok()
            .and_then(|index| self.fixed.get(index))
            .map_or(0, |r| r.load(Ordering::Relaxed));
        field(value >> (8 * (range & 7)))
    }
}

impl PartialEq for MtrrState {
    /// Whether two cores have the same registers, bit for bit.
    fn eq(&self, other: &Self) -> bool {
        let same =
            |a: &AtomicU64, b: &AtomicU64| a.load(Ordering::Relaxed) == b.load(Ordering::Relaxed);
        self.cap == other.cap
            && self.phys_bits == other.phys_bits
            && same(&self.def_type, &other.def_type)
            && self.fixed.iter().zip(&other.fixed).all(|(a, b)| same(a, b))
            && self.pairs().len() == other.pairs().len()
            && self
                .pairs()
                .iter()
                .zip(other.pairs())
                .all(|(a, b)| same(&a.0, &b.0) && same(&a.1, &b.1))
    }
}
