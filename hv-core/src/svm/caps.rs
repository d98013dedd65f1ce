//! What this processor's SVM can do, from CPUID and a few MSRs.
//!
//! Pure: the raw values go in, a description or a refusal comes out, so that
//! every processor that was ever dumped can be a test. AMD APM vol. 2, "Enabling
//! SVM" and "SVM Related MSRs", and vol. 3, appendix E, "Obtaining Processor
//! Information Via the CPUID Instruction".

use super::fields::nested;
use crate::error::StartError;

/// The raw CPUID answers and MSRs of one core. What does not exist there is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Raw {
    /// CPUID Fn0000_0007_ECX, subfunction 0.
    pub fn0000_0007_ecx: u32,
    /// CPUID Fn8000_0001_ECX.
    pub fn8000_0001_ecx: u32,
    /// CPUID Fn8000_0001_EDX.
    pub fn8000_0001_edx: u32,
    /// CPUID Fn8000_0008_EAX.
    pub fn8000_0008_eax: u32,
    /// CPUID Fn8000_000A_EBX.
    pub fn8000_000a_ebx: u32,
    /// CPUID Fn8000_000A_EDX.
    pub fn8000_000a_edx: u32,
    /// CPUID Fn8000_001F_EAX.
    pub fn8000_001f_eax: u32,
    /// CPUID Fn8000_001F_EBX.
    pub fn8000_001f_ebx: u32,
    /// VM_CR (C001_0114H). It exists with SVM.
    pub vm_cr: u64,
    /// EFER (C000_0080H).
    pub efer: u64,
    /// SYSCFG (C001_0010H).
    pub syscfg: u64,
    /// CR4.
    pub cr4: u64,
    /// S_CET (0000_06A2H). It exists with shadow stacks.
    pub s_cet: u64,
    /// SEV_STATUS (C001_0131H), where it can be read: Fn8000_001F_EAX shows SEV.
    pub sev_status: Option<u64>,
}

/// What the caller wants to be treated as absent, to reach the fallbacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent wishes")]
pub struct Pretend {
    /// As if the next instruction's address were not saved.
    pub no_nrip: bool,
    /// As if there were no decode assists.
    pub no_decode_assists: bool,
    /// As if only all address spaces could be flushed together.
    pub no_flush_by_asid: bool,
    /// As if there were no clean bits.
    pub no_vmcb_clean: bool,
    /// As if there were no guest mode execute trap.
    pub no_gmet: bool,
}

/// What to run with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a description of a processor"
)]
pub struct Controls {
    /// Exits of instructions save the next instruction's address.
    pub nrip: bool,
    /// Exits save the operands of some instructions and the bytes of others.
    pub decode_assists: bool,
    /// One address space can be flushed without the others.
    pub flush_by_asid: bool,
    /// Clean bits are looked at.
    pub vmcb_clean: bool,
    /// Guest mode execute trap: a leaf can permit fetches to user mode only. Used
    /// where CPUID shows it; no emulator has it, so it is untested.
    pub gmet: bool,
    /// 1 GB leaves may be used.
    pub npt_1g: bool,
    /// There are shadow stacks, whose registers VMRUN switches.
    pub shadow_stacks: bool,
    /// Number of address-space identifiers, the host's 0 among them; 2 or more.
    pub asids: u32,
    /// Width of a physical address, without the bits that memory encryption takes.
    pub phys_bits: u8,
    /// The bit of a physical address that asks for encryption, when memory
    /// encryption is on.
    pub c_bit: Option<u8>,
}

impl Controls {
    /// The word at 090H of the control block to run with.
    #[must_use]
    pub const fn nested_control(&self) -> u64 {
        nested::NP_ENABLE | if self.gmet { nested::GMET } else { 0 }
    }
}

// Fn0000_0007_ECX.
const SHADOW_STACKS: u32 = 1 << 7;
// Fn8000_0001.
const ECX_SVM: u32 = 1 << 2;
const EDX_PAGE_1GB: u32 = 1 << 26;
// Fn8000_000A_EDX.
const NESTED_PAGING: u32 = 1;
const NRIP_SAVE: u32 = 1 << 3;
const VMCB_CLEAN: u32 = 1 << 5;
const FLUSH_BY_ASID: u32 = 1 << 6;
const DECODE_ASSISTS: u32 = 1 << 7;
const GMET: u32 = 1 << 17;
// Fn8000_001F_EAX.
const SME: u32 = 1;

const VM_CR_LOCK: u64 = 1 << 3;
const VM_CR_SVMDIS: u64 = 1 << 4;
const EFER_NXE: u64 = 1 << 11;
/// EFER.SVME.
pub const EFER_SVME: u64 = 1 << 12;
const CR4_LA57: u64 = 1 << 12;
const CR4_CET: u64 = 1 << 23;
const CR4_FRED: u64 = 1 << 32;
const S_CET_SH_STK_EN: u64 = 1;
const SYSCFG_MEM_ENCRYPTION: u64 = 1 << 23;
/// SEV, SEV-ES and SEV-SNP.
const SEV_ANY: u64 = 7;

/// Width of a physical address where CPUID does not tell it.
const DEFAULT_PHYS_BITS: u8 = 36;

/// Chooses what to run with.
///
/// # Errors
/// A refusal when something is missing or in somebody else's hands.
pub fn controls(raw: &Raw, pretend: Pretend) -> Result<Controls, StartError> {
    let locked = raw.vm_cr & VM_CR_LOCK != 0;
    let off = raw.vm_cr & VM_CR_SVMDIS != 0;
    for (refused, refusal) in [
        (raw.fn8000_0001_ecx & ECX_SVM == 0, StartError::NoVmx),
        (
            raw.sev_status.is_some_and(|status| status & SEV_ANY != 0),
            StartError::EncryptedMemory,
        ),
        (off && locked, StartError::LockedOff),
        (off, StartError::SwitchedOff),
        (raw.efer & EFER_SVME != 0, StartError::VmxInUse),
        (raw.fn8000_000a_edx & NESTED_PAGING == 0, StartError::NoEpt),
        (raw.fn8000_000a_ebx < 2, StartError::TooFewAsids),
        // Nested tables have as many levels as the host's own (AMD APM vol. 2,
        // "Nested Paging").
        (raw.cr4 & CR4_LA57 != 0, StartError::NoFourLevelWalk),
        (raw.cr4 & CR4_FRED != 0, StartError::Fred),
        (
            raw.cr4 & CR4_CET != 0 && raw.s_cet & S_CET_SH_STK_EN != 0,
            StartError::ShadowStacks,
        ),
        // The host's NXE decides what NX means in nested tables.
        (raw.efer & EFER_NXE == 0, StartError::MissingControl),
    ] {
        if refused {
            return Err(refusal);
        }
    }
    let has = |ability: u32, pretended: bool| raw.fn8000_000a_edx & ability != 0 && !pretended;
    Ok(Controls {
        nrip: has(NRIP_SAVE, pretend.no_nrip),
        decode_assists: has(DECODE_ASSISTS, pretend.no_decode_assists),
        flush_by_asid: has(FLUSH_BY_ASID, pretend.no_flush_by_asid),
        vmcb_clean: has(VMCB_CLEAN, pretend.no_vmcb_clean),
        gmet: has(GMET, pretend.no_gmet),
        npt_1g: raw.fn8000_0001_edx & EDX_PAGE_1GB != 0,
        shadow_stacks: raw.fn0000_0007_ecx & SHADOW_STACKS != 0,
        asids: raw.fn8000_000a_ebx,
        phys_bits: phys_bits(raw),
        c_bit: is_encrypting(raw).then(|| field(raw.fn8000_001f_ebx, 0)),
    })
}

/// Whether memory encryption by page is on (AMD APM vol. 2, "Enabling Memory
/// Encryption Extensions").
const fn is_encrypting(raw: &Raw) -> bool {
    raw.fn8000_001f_eax & SME != 0 && raw.syscfg & SYSCFG_MEM_ENCRYPTION != 0
}

/// Six bits of a register.
const fn field(register: u32, first: u32) -> u8 {
    (register >> first & 0x3F) as u8
}

fn phys_bits(raw: &Raw) -> u8 {
    let bits = match (raw.fn8000_0008_eax & 0xFF) as u8 {
        0 => DEFAULT_PHYS_BITS,
        bits => bits,
    };
    if is_encrypting(raw) {
        bits.saturating_sub(field(raw.fn8000_001f_ebx, 6))
    } else {
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Like a Zen 2 server processor.
    fn rome() -> Raw {
        Raw {
            fn0000_0007_ecx: 0x0040_0004,
            fn8000_0001_ecx: 0x75C2_37FF,
            fn8000_0001_edx: 0x2FD3_FBFF,
            fn8000_0008_eax: 0x0000_3030,
            fn8000_000a_ebx: 0x8000,
            fn8000_000a_edx: 0x0013_BCFF,
            fn8000_001f_eax: 0x0001_000F,
            fn8000_001f_ebx: 0x0000_016F,
            vm_cr: VM_CR_LOCK,
            efer: 0xD01,
            syscfg: 0x0074_0000,
            cr4: 0x0035_06F8,
            s_cet: 0,
            sev_status: None,
        }
    }

    /// Like an emulator: nested paging and nothing else.
    fn emulated() -> Raw {
        Raw {
            fn8000_0001_ecx: 0x4,
            fn8000_0001_edx: 0x2FD3_FBFF,
            fn8000_0008_eax: 0x0000_3028,
            fn8000_000a_ebx: 0x10,
            fn8000_000a_edx: 1,
            efer: 0xD01,
            ..Raw::default()
        }
    }

    fn chosen(raw: &Raw) -> Controls {
        controls(raw, Pretend::default()).unwrap()
    }

    #[test]
    fn a_current_processor_gets_what_it_shows() {
        assert_eq!(
            chosen(&rome()),
            Controls {
                nrip: true,
                decode_assists: true,
                flush_by_asid: true,
                vmcb_clean: true,
                gmet: true,
                npt_1g: true,
                shadow_stacks: false,
                asids: 0x8000,
                phys_bits: 48,
                c_bit: None,
            }
        );
    }

    #[test]
    fn the_least_processor_will_do() {
        assert_eq!(
            chosen(&emulated()),
            Controls {
                npt_1g: true,
                asids: 16,
                phys_bits: 40,
                ..Controls::default()
            }
        );
    }

    #[test]
    fn shadow_stacks_that_are_not_active_do_no_harm() {
        for (cr4, s_cet) in [(CR4_CET, 2), (0, 1)] {
            let raw = Raw {
                fn0000_0007_ecx: SHADOW_STACKS,
                cr4: rome().cr4 | cr4,
                s_cet,
                ..rome()
            };
            assert!(chosen(&raw).shadow_stacks);
        }
    }

    #[test]
    fn memory_encryption_takes_address_bits() {
        let raw = Raw {
            syscfg: rome().syscfg | SYSCFG_MEM_ENCRYPTION,
            ..rome()
        };
        let controls = chosen(&raw);
        assert_eq!(controls.phys_bits, 43);
        assert_eq!(controls.c_bit, Some(47));
        // The same bit of SYSCFG on a processor without encryption.
        let raw = Raw {
            fn8000_001f_eax: 0,
            ..raw
        };
        assert_eq!((chosen(&raw).phys_bits, chosen(&raw).c_bit), (48, None));
    }

    #[test]
    fn without_a_width_there_is_the_oldest() {
        let raw = Raw {
            fn8000_0008_eax: 0,
            ..rome()
        };
        assert_eq!(chosen(&raw).phys_bits, 36);
    }

    #[test]
    fn every_refusal_has_its_cause() {
        let ok = rome();
        for (raw, refusal) in [
            (
                Raw {
                    fn8000_0001_ecx: ok.fn8000_0001_ecx & !ECX_SVM,
                    ..ok
                },
                StartError::NoVmx,
            ),
            (Raw::default(), StartError::NoVmx),
            (Raw { vm_cr: 0x18, ..ok }, StartError::LockedOff),
            (Raw { vm_cr: 0x10, ..ok }, StartError::SwitchedOff),
            (
                Raw {
                    efer: ok.efer | EFER_SVME,
                    ..ok
                },
                StartError::VmxInUse,
            ),
            (
                Raw {
                    fn8000_000a_edx: ok.fn8000_000a_edx & !NESTED_PAGING,
                    ..ok
                },
                StartError::NoEpt,
            ),
            (
                Raw {
                    fn8000_000a_ebx: 1,
                    ..ok
                },
                StartError::TooFewAsids,
            ),
            (
                Raw {
                    fn8000_000a_ebx: 0,
                    ..ok
                },
                StartError::TooFewAsids,
            ),
            (
                Raw {
                    cr4: ok.cr4 | CR4_LA57,
                    ..ok
                },
                StartError::NoFourLevelWalk,
            ),
            (
                Raw {
                    cr4: ok.cr4 | CR4_FRED,
                    ..ok
                },
                StartError::Fred,
            ),
            (
                Raw {
                    cr4: ok.cr4 | CR4_CET,
                    s_cet: 1,
                    ..ok
                },
                StartError::ShadowStacks,
            ),
            (
                Raw {
                    efer: ok.efer & !EFER_NXE,
                    ..ok
                },
                StartError::MissingControl,
            ),
            (
                Raw {
                    sev_status: Some(1),
                    ..ok
                },
                StartError::EncryptedMemory,
            ),
            (
                Raw {
                    sev_status: Some(4),
                    ..ok
                },
                StartError::EncryptedMemory,
            ),
        ] {
            assert_eq!(controls(&raw, Pretend::default()), Err(refusal));
        }
    }

    #[test]
    fn what_does_not_matter_is_not_refused() {
        for raw in [
            Raw { vm_cr: 0, ..rome() },
            Raw {
                // DPD, R_INIT, DIS_A20M.
                vm_cr: 0x7,
                ..rome()
            },
            Raw {
                sev_status: Some(0),
                ..rome()
            },
            Raw {
                fn8000_000a_ebx: 2,
                ..rome()
            },
        ] {
            assert!(controls(&raw, Pretend::default()).is_ok());
        }
    }

    #[test]
    fn the_trap_is_on_where_it_is_shown_and_wanted() {
        for (shown, no_gmet, word) in [
            (false, false, 1),
            (false, true, 1),
            (true, false, 9),
            (true, true, 1),
        ] {
            let raw = Raw {
                fn8000_000a_edx: if shown { 1 | 1 << 17 } else { !(1 << 17) },
                ..rome()
            };
            let pretend = Pretend {
                no_gmet,
                ..Pretend::default()
            };
            let controls = controls(&raw, pretend).unwrap();
            assert_eq!(controls.gmet, word == 9);
            assert_eq!(controls.nested_control(), word, "{shown} {no_gmet}");
        }
    }

    #[test]
    fn each_ability_can_be_hidden_on_its_own() {
        for wish in 0..32 {
            let hides = |bit: u32| wish >> bit & 1 != 0;
            let pretend = Pretend {
                no_nrip: hides(0),
                no_decode_assists: hides(1),
                no_flush_by_asid: hides(2),
                no_vmcb_clean: hides(3),
                no_gmet: hides(4),
            };
            assert_eq!(
                controls(&rome(), pretend),
                Ok(Controls {
                    nrip: !hides(0),
                    decode_assists: !hides(1),
                    flush_by_asid: !hides(2),
                    vmcb_clean: !hides(3),
                    gmet: !hides(4),
                    ..chosen(&rome())
                })
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_is_promised_that_is_not_shown(edx: u32, ebx: u32, width: u32, sme: u32) {
            let raw = Raw {
                fn8000_000a_edx: edx,
                fn8000_000a_ebx: ebx,
                fn8000_0008_eax: width,
                fn8000_001f_ebx: sme,
                syscfg: SYSCFG_MEM_ENCRYPTION,
                ..rome()
            };
            match controls(&raw, Pretend::default()) {
                Ok(controls) => {
                    prop_assert_eq!(edx & 1, 1);
                    prop_assert!(controls.asids >= 2);
                    for (promised, bit) in [
                        (controls.nrip, 3),
                        (controls.vmcb_clean, 5),
                        (controls.flush_by_asid, 6),
                        (controls.decode_assists, 7),
                        (controls.gmet, 17),
                    ] {
                        prop_assert_eq!(promised, edx >> bit & 1 != 0);
                    }
                }
                Err(StartError::NoEpt) => prop_assert_eq!(edx & 1, 0),
                Err(refusal) => prop_assert_eq!(refusal, StartError::TooFewAsids),
            }
        }
    }
}
