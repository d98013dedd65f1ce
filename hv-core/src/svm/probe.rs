//! What a core with SVM offers, read in guest context before anything is changed.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use x86::msr;

use super::Shared;
use super::caps::{self, Raw};
use super::msr::VM_CR;
use super::vcpu::S_CET;
use crate::backend::{Features, Vendor};
use crate::error::StartError;
use crate::probe::{Pretend, Probe};
use crate::{instr, vmx};

const SYSCFG: u32 = 0xC001_0010;
const SEV_STATUS: u32 = 0xC001_0131;

/// Reads what the running core offers.
///
/// # Errors
/// Why this core cannot be taken over; nothing has been changed.
///
/// # Safety
/// CPL 0.
pub unsafe fn probe(pretend: Pretend) -> Result<Probe, StartError> {
    // SAFETY: the caller's promise.
    let raw = unsafe { raw() };
    let controls = caps::controls(&raw, pretend.svm)?;
    Ok(Probe {
        features: Features {
            vendor: Vendor::Amd,
            mbec: controls.gmet,
            mtf: false,
            leaf_1g: controls.npt_1g,
            flush_one: controls.flush_by_asid,
            next_rip: controls.nrip,
            decode_assists: controls.decode_assists,
        },
        firmware: raw.vm_cr,
        firmware_open: false,
        phys_bits: controls.phys_bits,
        large_page_erratum: false,
        vmx: vmx::Shared::default(),
        svm: Shared { controls, n_cr3: 0 },
    })
}

/// # Safety
/// CPL 0 on a processor of AMD's.
unsafe fn raw() -> Raw {
    let highest = __cpuid(0x8000_0000).eax;
    let leaf = |number| {
        if highest >= number {
            Some(__cpuid(number))
        } else {
            None
        }
    };
    let (one, eight) = (leaf(0x8000_0001), leaf(0x8000_0008));
    let (svm, encryption) = (leaf(0x8000_000A), leaf(0x8000_001F));
    let features = __cpuid_count(7, 0);
    let flags = instr::rflags();
    // SAFETY: set again below.
    unsafe { instr::cli() };
    // CPUID says which MSRs exist, but not every hypervisor or emulator that shows
    // the leaf has them.
    let read = |exists: bool, index| {
        // SAFETY: CPL 0, interrupts are off.
        exists
            .then(|| unsafe { instr::probe_rdmsr(index) })
            .flatten()
    };
    let ecx = one.map_or(0, |leaf| leaf.ecx);
    let eax = encryption.map_or(0, |leaf| leaf.eax);
    let shadow_stacks = features.ecx & 1 << 7 != 0;
    let raw = Raw {
        fn0000_0007_ecx: features.ecx,
        fn8000_0001_ecx: ecx,
        fn8000_0001_edx: one.map_or(0, |leaf| leaf.edx),
        fn8000_0008_eax: eight.map_or(0, |leaf| leaf.eax),
        fn8000_000a_ebx: svm.map_or(0, |leaf| leaf.ebx),
        fn8000_000a_edx: svm.map_or(0, |leaf| leaf.edx),
        fn8000_001f_eax: eax,
        fn8000_001f_ebx: encryption.map_or(0, |leaf| leaf.ebx),
        vm_cr: read(ecx & 1 << 2 != 0, VM_CR).unwrap_or(0),
        efer: read(true, msr::IA32_EFER).unwrap_or(0),
        syscfg: read(eax & 3 != 0, SYSCFG).unwrap_or(0),
        // SAFETY: reads a register at CPL 0.
        cr4: unsafe { instr::cr4() },
        s_cet: read(shadow_stacks, S_CET).unwrap_or(0),
        sev_status: read(eax & 2 != 0, SEV_STATUS),
    };
    if flags & 1 << 9 != 0 {
        // SAFETY: interrupts were allowed before.
        unsafe { instr::sti() };
    }
    raw
}
