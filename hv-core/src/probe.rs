//! What a core offers, read in guest context before anything is changed.

use core::arch::x86_64::__cpuid;

use ept::memtype::{FIXED_REGISTERS, MSR_DEF_TYPE, MSR_FIXED, MSR_PHYS_BASE0};
use x86::msr;

use crate::backend::{Features, Vendor};
use crate::error::StartError;
use crate::{instr, svm, vmx};

/// What the caller wants to be treated as absent, to reach the fallbacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pretend {
    /// As if there were no monitor trap flag.
    pub no_mtf: bool,
    /// As if there were no mode-based execute control. AMD's counterpart is
    /// [`svm::caps::Pretend::no_gmet`]; who wants neither says both.
    pub no_mbec: bool,
    /// The same for AMD's abilities.
    pub svm: svm::caps::Pretend,
}

/// What one core told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What the processor can do.
    pub features: Features,
    /// The register by which firmware allows virtualization: IA32_FEATURE_CONTROL
    /// or VM_CR.
    pub firmware: u64,
    /// The firmware has left that register unlocked, and the launch locks it.
    pub firmware_open: bool,
    /// Width of a physical address.
    pub phys_bits: u8,
    /// A page whose size changes must be out of every translation cache first.
    pub large_page_erratum: bool,
    /// For Intel's side.
    pub vmx: vmx::Shared,
    /// For AMD's side.
    pub svm: svm::Shared,
}

/// Whose virtualization the processor has, by its vendor string.
#[must_use]
pub fn vendor() -> Option<Vendor> {
    let leaf = __cpuid(0);
    match (leaf.ebx, leaf.edx, leaf.ecx) {
        // "GenuineIntel"
        (0x756E_6547, 0x4965_6E69, 0x6C65_746E) => Some(Vendor::Intel),
        // "AuthenticAMD" and "HygonGenuine"
        (0x6874_7541, 0x6974_6E65, 0x444D_4163) | (0x6F67_7948, 0x6E65_476E, 0x656E_6975) => {
            Some(Vendor::Amd)
        }
        _ => None,
    }
}

/// Reads what the running core offers.
///
/// # Errors
/// Why this core cannot be taken over; nothing has been changed.
///
/// # Safety
/// CPL 0.
pub unsafe fn probe(pretend: Pretend) -> Result<Probe, StartError> {
    if __cpuid(1).ecx >> 31 & 1 != 0 {
        return Err(StartError::HypervisorPresent);
    }
    match vendor() {
        // SAFETY: the caller's promise.
        Some(Vendor::Intel) => unsafe { vmx::probe::probe(pretend) },
        // SAFETY: the caller's promise.
        Some(Vendor::Amd) => unsafe { svm::probe::probe(pretend) },
        None => Err(StartError::UnknownVendor),
    }
}

/// Width of a physical address, as CPUID says.
#[must_use]
pub fn phys_bits() -> u8 {
    if __cpuid(0x8000_0000).eax >= 0x8000_0008 {
        (__cpuid(0x8000_0008).eax & 0xFF) as u8
    } else {
        36
    }
}

/// The raw memory-type range registers.
#[derive(Debug)]
pub struct Mtrrs {
    /// IA32_MTRRCAP.
    pub cap: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub def_type: u64,
    /// The fixed-range registers.
    pub fixed: [u64; FIXED_REGISTERS],
    /// The variable-range pairs.
    pub variable: [(u64, u64); 32],
    /// How many of them there are.
    pub count: u32,
}

/// Reads the memory-type range registers of the running core.
///
/// # Safety
/// CPL 0.
#[inline(never)]
#[must_use]
pub unsafe fn mtrrs() -> Mtrrs {
    let read = |index| {
        // SAFETY: MTRRs exist on every processor with VMX or SVM; the variable ones as
        // many as IA32_MTRRCAP says, the fixed ones if it says so.
        unsafe { instr::rdmsr(index) }
    };
    let cap = read(msr::IA32_MTRRCAP);
    let mut found = Mtrrs {
        cap,
        def_type: read(MSR_DEF_TYPE),
        fixed: [0; FIXED_REGISTERS],
        variable: [(0, 0); 32],
        count: (cap & 0xFF) as u32,
    };
    if cap & 1 << 8 != 0 {
        for (value, index) in found.fixed.iter_mut().zip(MSR_FIXED) {
            *value = read(index);
        }
    }
    for (pair, index) in found
        .variable
        .iter_mut()
        .zip((MSR_PHYS_BASE0..).step_by(2))
        .take((cap & 0xFF) as usize)
    {
        *pair = (read(index), read(index + 1));
    }
    found
}
