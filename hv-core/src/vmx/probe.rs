//! What a core with VMX offers, read in guest context before anything is changed.

use super::Shared;
use super::caps::{self, GuestFeatures, Raw};
use crate::backend::{Features, Vendor};
use crate::emulate::msr::FEATURE_CONTROL;
use crate::error::StartError;
use crate::probe::{self, Pretend, Probe};
use crate::{instr, svm};

const PE_AND_PG: u64 = 1 << 31 | 1;
const LOCK: u64 = 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// Reads what the running core offers.
///
/// # Errors
/// Why this core cannot be taken over; nothing has been changed.
///
/// # Safety
/// CPL 0.
pub unsafe fn probe(pretend: Pretend) -> Result<Probe, StartError> {
    if core::arch::x86_64::__cpuid(1).ecx >> 5 & 1 == 0 {
        return Err(StartError::NoVmx);
    }
    // SAFETY: the MSR exists with VMX.
    let feature_control = unsafe { instr::rdmsr(FEATURE_CONTROL) };
    if feature_control & LOCK != 0 && feature_control & VMX_OUTSIDE_SMX == 0 {
        return Err(StartError::LockedOff);
    }
    // SAFETY: reads a register at CPL 0.
    let cr4 = unsafe { instr::cr4() };
    // VMXE, or SMXE: a measured launch.
    if cr4 >> 13 & 3 != 0 {
        return Err(StartError::VmxInUse);
    }
    if cr4 >> 32 & 1 != 0 {
        return Err(StartError::Fred);
    }
    let features = guest_features();
    if features.cet && cr4 >> 23 & 1 != 0 {
        // SAFETY: IA32_S_CET exists with CET.
        let s_cet = unsafe { instr::rdmsr(0x6A2) };
        if super::vcpu::shadow_stacks_active(cr4, s_cet) {
            return Err(StartError::ShadowStacks);
        }
    }
    // SAFETY: CPUID shows VMX.
    let raw = unsafe { capabilities() }?;
    let controls = caps::controls(&raw, features, pretend)?;
    Ok(Probe {
        features: Features {
            vendor: Vendor::Intel,
            mbec: controls.mbec,
            mtf: controls.mtf,
            leaf_1g: controls.ept_1g,
            flush_one: true,
            next_rip: false,
            decode_assists: false,
        },
        firmware: feature_control,
        firmware_open: feature_control & LOCK == 0,
        phys_bits: probe::phys_bits(),
        large_page_erratum: large_page_erratum(),
        vmx: Shared {
            controls,
            cr0_fixed: raw.cr0_fixed0 & !PE_AND_PG,
            eptp: 0,
        },
        svm: svm::Shared::default(),
    })
}

/// # Safety
/// CPL 0 on a processor with VMX.
unsafe fn capabilities() -> Result<Raw, StartError> {
    let read = |index| {
        // SAFETY: each MSR is read only after another one has said that it exists.
        unsafe { instr::rdmsr(index) }
    };
    let basic = read(0x480);
    let exact = caps::has_true_controls(basic);
    let choose = |exact_index, index| read(if exact { exact_index } else { index });
    let primary = choose(0x48E, 0x482);
    if primary >> 63 & 1 == 0 {
        return Err(StartError::NoEpt);
    }
    let secondary = read(0x48B);
    if secondary >> (32 + 1) & 1 == 0 {
        return Err(StartError::NoEpt);
    }
    Ok(Raw {
        basic,
        pin: choose(0x48D, 0x481),
        primary,
        secondary,
        exit: choose(0x48F, 0x483),
        entry: choose(0x490, 0x484),
        ept_vpid: read(0x48C),
        cr0_fixed0: read(0x486),
        cr0_fixed1: read(0x487),
        cr4_fixed0: read(0x488),
        cr4_fixed1: read(0x489),
        misc: read(0x485),
    })
}

fn guest_features() -> GuestFeatures {
    let highest = core::arch::x86_64::__cpuid(0).eax;
    let extended = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    let leaf = |number, sub| {
        if highest >= number {
            core::arch::x86_64::__cpuid_count(number, sub)
        } else {
            core::arch::x86_64::CpuidResult {
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
            }
        }
    };
    let seven = leaf(7, 0);
    let rdtscp =
        extended >= 0x8000_0001 && core::arch::x86_64::__cpuid(0x8000_0001).edx >> 27 & 1 != 0;
    GuestFeatures {
        rdtscp,
        invpcid: seven.ebx >> 10 & 1 != 0,
        xsaves: leaf(0xD, 1).eax >> 3 & 1 != 0,
        waitpkg: seven.ecx >> 5 & 1 != 0,
        cet: seven.ecx >> 7 & 1 != 0 || seven.edx >> 20 & 1 != 0,
        pt: seven.ebx >> 25 & 1 != 0,
        pconfig: seven.edx >> 18 & 1 != 0,
        enqcmd: seven.ecx >> 29 & 1 != 0,
    }
}

/// Whether a machine check is possible when the size of a page changes that is
/// being fetched from: IA32_ARCH_CAPABILITIES.IF_PSCHANGE_MC_NO is clear (Intel,
/// "Machine Check Error Avoidance on Page Size Change", CVE-2018-12207).
fn large_page_erratum() -> bool {
    const ARCH_CAPABILITIES: u32 = 0x10A;
    if core::arch::x86_64::__cpuid(0).eax < 7
        || core::arch::x86_64::__cpuid_count(7, 0).edx >> 29 & 1 == 0
    {
        return true;
    }
    // SAFETY: CPUID says that the MSR exists.
    let capabilities = unsafe { instr::rdmsr(ARCH_CAPABILITIES) };
    capabilities >> 6 & 1 == 0
}
