//! What a hierarchy of nested tables amounts to, whoever's format it has.

use super::checkpoint::{Checkpoint, Cpu};
use super::{ept, npt};
use anyhow::Result;
use std::collections::BTreeSet;

/// Bytes of the smallest page.
pub(crate) const PAGE: u64 = 4096;

/// Where one processor's nested tables begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Root {
    /// The EPT pointer.
    Ept(u64),
    /// `N_CR3` of the VMCB.
    Npt(u64),
}

impl Root {
    /// That of a processor which has one in use.
    pub(crate) fn of(cpu: &Cpu) -> Option<Self> {
        match cpu.vendor.as_str() {
            "vmx" if cpu.eptp != 0 => Some(Self::Ept(cpu.eptp)),
            "svm" if cpu.ncr3 != 0 => Some(Self::Npt(cpu.ncr3)),
            _ => None,
        }
    }

    /// For people.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Ept(eptp) => format!("EPTP {eptp:#x}"),
            Self::Npt(ncr3) => format!("N_CR3 {ncr3:#x}"),
        }
    }
}

/// One mapping of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First guest-physical address.
    pub(crate) guest: u64,
    /// First physical address that it leads to.
    pub(crate) target: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Every entry on the way grants writing.
    pub(crate) write: bool,
    /// Every entry on the way grants execution (to the kernel, with MBEC).
    pub(crate) execute: bool,
    /// Every entry on the way grants execution to user code.
    pub(crate) user_execute: bool,
    /// EPT memory type. NPT has none: the processor applies the MTRRs itself.
    pub(crate) memory_type: Option<u8>,
}

impl Leaf {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{:#x}+{:#x} r{}{}{}{}",
            self.guest,
            self.size,
            if self.write { "w" } else { "-" },
            if self.execute { "x" } else { "-" },
            if self.user_execute { "u" } else { "-" },
            if self.guest == self.target {
                String::new()
            } else {
                format!(" -> {:#x}", self.target)
            }
        )
    }
}

/// A whole hierarchy.
#[derive(Debug)]
pub(crate) struct Space {
    /// Where it begins.
    pub(crate) root: Root,
    /// Every mapping.
    pub(crate) leaves: Vec<Leaf>,
    /// Pages that the hierarchy consists of.
    pub(crate) tables: BTreeSet<u64>,
    /// Entries that a processor would refuse.
    pub(crate) malformed: Vec<String>,
}

impl Space {
    /// Walks the whole hierarchy.
    pub(crate) fn walk(checkpoint: &Checkpoint, root: Root) -> Result<Self> {
        let mut space = Self {
            root,
            leaves: Vec::new(),
            tables: BTreeSet::new(),
            malformed: Vec::new(),
        };
        match root {
            Root::Ept(eptp) => ept::walk(checkpoint, eptp, &mut space)?,
            Root::Npt(ncr3) => npt::walk(checkpoint, ncr3, &mut space)?,
        }
        Ok(space)
    }
}

/// Bits of an entry that hold an address.
pub(crate) fn address_mask(checkpoint: &Checkpoint) -> u64 {
    ((1 << checkpoint.physical_bits) - 1) & !(PAGE - 1)
}
