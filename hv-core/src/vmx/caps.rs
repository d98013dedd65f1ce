//! What this processor's VMX can do, from its capability MSRs.
//!
//! Pure: the raw values go in, a description or a refusal comes out, so that
//! every processor that was ever dumped can be a test. Intel SDM vol. 3,
//! appendix A, "VMX Capability Reporting Facility".

use crate::error::StartError;
use crate::probe::Pretend;

/// The raw capability MSRs and CPUID answers of one core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Raw {
    /// IA32_VMX_BASIC (0x480).
    pub basic: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS (0x48D), or 0x481 without TRUE controls.
    pub pin: u64,
    /// IA32_VMX_TRUE_PROCBASED_CTLS (0x48E), or 0x482.
    pub primary: u64,
    /// IA32_VMX_PROCBASED_CTLS2 (0x48B).
    pub secondary: u64,
    /// IA32_VMX_TRUE_EXIT_CTLS (0x48F), or 0x483.
    pub exit: u64,
    /// IA32_VMX_TRUE_ENTRY_CTLS (0x490), or 0x484.
    pub entry: u64,
    /// IA32_VMX_EPT_VPID_CAP (0x48C).
    pub ept_vpid: u64,
    /// IA32_VMX_CR0_FIXED0 (0x486).
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1 (0x487).
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0 (0x488).
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1 (0x489).
    pub cr4_fixed1: u64,
    /// IA32_VMX_MISC (0x485).
    pub misc: u64,
}

/// CPUID features whose instructions need a secondary control to work in the
/// guest as they do without a hypervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a list of independent CPUID bits"
)]
pub struct GuestFeatures {
    /// CPUID.80000001H:EDX.RDTSCP\[27\].
    pub rdtscp: bool,
    /// CPUID.07H:EBX.INVPCID\[10\].
    pub invpcid: bool,
    /// CPUID.(0DH,1):EAX.XSAVES\[3\].
    pub xsaves: bool,
    /// CPUID.07H:ECX.WAITPKG\[5\].
    pub waitpkg: bool,
    /// CPUID.07H:ECX.CET_SS\[7\] or EDX.CET_IBT\[20\].
    pub cet: bool,
    /// CPUID.14H, Intel Processor Trace (CPUID.07H:EBX\[25\]).
    pub pt: bool,
    /// CPUID.07H:EDX.PCONFIG\[18\].
    pub pconfig: bool,
    /// CPUID.07H:ECX.ENQCMD\[29\].
    pub enqcmd: bool,
}

/// The controls to run with, and what follows from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a description of a processor"
)]
pub struct Controls {
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls.
    pub primary: u32,
    /// Secondary processor-based controls.
    pub secondary: u32,
    /// Primary VM-exit controls.
    pub exit: u32,
    /// VM-entry controls.
    pub entry: u32,
    /// VM-entry controls of the launch: debug controls are not loaded, so that
    /// the first exit saves those that the processor has. (They cannot be read
    /// before: not every processor model has IA32_DEBUGCTL.)
    pub launch_entry: u32,
    /// Mode-based execute control is on.
    pub mbec: bool,
    /// The monitor trap flag may be used.
    pub mtf: bool,
    /// 1 GB leaves may be used.
    pub ept_1g: bool,
    /// The EPT violation's qualification tells the guest page's rights.
    pub advanced_exit_info: bool,
    /// CET state is switched.
    pub cet: bool,
    /// VMCS revision identifier.
    pub revision: u32,
}

/// Pin-based: NMI exiting.
pub const PIN_NMI_EXITING: u32 = 1 << 3;
/// Pin-based: virtual NMIs.
pub const PIN_VIRTUAL_NMIS: u32 = 1 << 5;
/// Primary: NMI-window exiting.
pub const PRIMARY_NMI_WINDOW: u32 = 1 << 22;
/// Primary: monitor trap flag.
pub const PRIMARY_MTF: u32 = 1 << 27;
/// Primary: use MSR bitmaps.
pub const PRIMARY_MSR_BITMAPS: u32 = 1 << 28;
/// Primary: activate secondary controls.
pub const PRIMARY_SECONDARY: u32 = 1 << 31;
/// Secondary: enable EPT.
pub const SECONDARY_EPT: u32 = 1 << 1;
/// Secondary: enable RDTSCP.
pub const SECONDARY_RDTSCP: u32 = 1 << 3;
/// Secondary: enable VPID.
pub const SECONDARY_VPID: u32 = 1 << 5;
/// Secondary: unrestricted guest.
pub const SECONDARY_UNRESTRICTED: u32 = 1 << 7;
/// Secondary: enable INVPCID.
pub const SECONDARY_INVPCID: u32 = 1 << 12;
/// Secondary: enable XSAVES/XRSTORS.
pub const SECONDARY_XSAVES: u32 = 1 << 20;
/// Secondary: mode-based execute control for EPT.
pub const SECONDARY_MBEC: u32 = 1 << 22;
/// Secondary: enable user wait and pause.
pub const SECONDARY_USER_WAIT: u32 = 1 << 26;
/// Secondary: enable PCONFIG.
pub const SECONDARY_PCONFIG: u32 = 1 << 27;
/// Exit: save debug controls.
pub const EXIT_SAVE_DEBUG: u32 = 1 << 2;
/// Exit: host address-space size.
pub const EXIT_HOST_64: u32 = 1 << 9;
/// Exit: save IA32_PAT.
pub const EXIT_SAVE_PAT: u32 = 1 << 18;
/// Exit: load IA32_PAT.
pub const EXIT_LOAD_PAT: u32 = 1 << 19;
/// Exit: save IA32_EFER.
pub const EXIT_SAVE_EFER: u32 = 1 << 20;
/// Exit: load IA32_EFER.
pub const EXIT_LOAD_EFER: u32 = 1 << 21;
/// Exit: load CET state.
pub const EXIT_LOAD_CET: u32 = 1 << 28;
/// Entry: load debug controls.
pub const ENTRY_LOAD_DEBUG: u32 = 1 << 2;
/// Entry: IA-32e mode guest.
pub const ENTRY_IA32E: u32 = 1 << 9;
/// Entry: load IA32_PAT.
pub const ENTRY_LOAD_PAT: u32 = 1 << 14;
/// Entry: load IA32_EFER.
pub const ENTRY_LOAD_EFER: u32 = 1 << 15;
/// Entry: load CET state.
pub const ENTRY_LOAD_CET: u32 = 1 << 20;

// The bits that are reserved to 1 when the TRUE MSRs are there (appendix A.3 to
// A.5, default1 classes). CR3 exits (primary 15, 16) and debug controls are in
// default1 as well but may be 0 with the TRUE MSRs.
const PIN_DEFAULT1: u32 = 0x16;
const PRIMARY_DEFAULT1: u32 = 0x0401_E172;
const EXIT_DEFAULT1: u32 = 0x0003_6DFF;
const ENTRY_DEFAULT1: u32 = 0x11FF;

const EPT_WALK_4: u64 = 1 << 6;
const EPT_WB: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const INVEPT: u64 = 1 << 20;
const EPT_ADVANCED: u64 = 1 << 22;
const INVEPT_SINGLE: u64 = 1 << 25;

#[expect(clippy::cast_possible_truncation, reason = "halves of an MSR")]
const fn required(msr: u64) -> u32 {
    msr as u32
}

const fn allowed(msr: u64) -> u32 {
    (msr >> 32) as u32
}

/// One control word: all that is required, all of `want` that is there.
/// `known` are the required bits that are understood here.
fn word(msr: u64, want: u32, known: u32) -> Result<u32, StartError> {
    if required(msr) & !known != 0 {
        return Err(StartError::UnknownRequiredControl);
    }
    Ok((want | required(msr)) & allowed(msr))
}

/// Whether all VMX MSRs that are read here exist: bit 55 of IA32_VMX_BASIC tells
/// whether the TRUE control MSRs do.
#[must_use]
pub const fn has_true_controls(basic: u64) -> bool {
    basic & 1 << 55 != 0
}

/// Chooses the controls.
///
/// # Errors
/// A refusal when something is missing or required that is not understood.
pub fn controls(
    raw: &Raw,
    features: GuestFeatures,
    pretend: Pretend,
) -> Result<Controls, StartError> {
    if allowed(raw.primary) & PRIMARY_SECONDARY == 0 || allowed(raw.secondary) & SECONDARY_EPT == 0
    {
        return Err(StartError::NoEpt);
    }
    for (needed, error) in [
        (EPT_WALK_4, StartError::NoFourLevelWalk),
        (EPT_WB, StartError::NoWriteBackTables),
        (EPT_2M, StartError::NoEpt),
        (INVEPT | INVEPT_SINGLE, StartError::NoInvept),
    ] {
        if raw.ept_vpid & needed != needed {
            return Err(error);
        }
    }

    let want_pin = PIN_NMI_EXITING | PIN_VIRTUAL_NMIS;
    let pin = word(raw.pin, want_pin, PIN_DEFAULT1 | want_pin)?;
    let want_primary = PRIMARY_MSR_BITMAPS | PRIMARY_SECONDARY;
    let primary = word(raw.primary, want_primary, PRIMARY_DEFAULT1 | want_primary)?;

    let mut want_secondary = SECONDARY_EPT | SECONDARY_UNRESTRICTED | SECONDARY_VPID;
    for (present, control) in [
        (features.rdtscp, SECONDARY_RDTSCP),
        (features.invpcid, SECONDARY_INVPCID),
        (features.xsaves, SECONDARY_XSAVES),
        (features.waitpkg, SECONDARY_USER_WAIT),
        (features.pconfig, SECONDARY_PCONFIG),
        (!pretend.no_mbec, SECONDARY_MBEC),
    ] {
        if present {
            want_secondary |= control;
        }
    }
    let secondary = word(raw.secondary, want_secondary, want_secondary)?;

    // CET state is all or nothing: with one direction only, root mode or the
    // guest would run with the other's.
    let cet = features.cet
        && allowed(raw.exit) & EXIT_LOAD_CET != 0
        && allowed(raw.entry) & ENTRY_LOAD_CET != 0;
    let mut want_exit = EXIT_SAVE_DEBUG
        | EXIT_HOST_64
        | EXIT_SAVE_PAT
        | EXIT_LOAD_PAT
        | EXIT_SAVE_EFER
        | EXIT_LOAD_EFER;
    let mut want_entry = ENTRY_LOAD_DEBUG | ENTRY_IA32E | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER;
    if cet {
        want_exit |= EXIT_LOAD_CET;
        want_entry |= ENTRY_LOAD_CET;
    }
    let exit = word(raw.exit, want_exit, EXIT_DEFAULT1 | want_exit)?;
    let entry = word(raw.entry, want_entry, ENTRY_DEFAULT1 | want_entry)?;

    let lacks = |have: u32, want: u32| have & want != want;
    if lacks(pin, want_pin)
        || lacks(primary, want_primary)
        || lacks(
            secondary,
            SECONDARY_EPT | SECONDARY_UNRESTRICTED | SECONDARY_VPID,
        )
        || lacks(exit, want_exit)
        || lacks(entry, want_entry)
    {
        return Err(StartError::MissingControl);
    }

    Ok(Controls {
        pin,
        primary,
        secondary,
        exit,
        entry,
        launch_entry: entry & !ENTRY_LOAD_DEBUG | required(raw.entry),
        mbec: secondary & SECONDARY_MBEC != 0,
        mtf: allowed(raw.primary) & PRIMARY_MTF != 0 && !pretend.no_mtf,
        ept_1g: raw.ept_vpid & EPT_1G != 0,
        advanced_exit_info: raw.ept_vpid & EPT_ADVANCED != 0,
        cet,
        revision: required(raw.basic) & 0x7FFF_FFFF,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tigerlake() -> Raw {
        // Allowed-1 words as the Bochs 3.0 model shows them.
        Raw {
            basic: 1 << 55 | 0x2B,
            pin: 0x0000_00FF_0000_0016,
            primary: 0xFFF9_FFFE_0400_6172,
            secondary: 0x02D7_7FFF_0000_0000,
            exit: 0x1FFF_FFFF_0003_6DFB,
            entry: 0x001F_FFFF_0000_11FB,
            ept_vpid: 0x0F01_0673_4141,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xFFFF_FFFF,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x3FFF_FFFF,
            misc: 0,
        }
    }

    fn all() -> GuestFeatures {
        GuestFeatures {
            rdtscp: true,
            invpcid: true,
            xsaves: true,
            waitpkg: true,
            cet: true,
            pt: false,
            pconfig: true,
            enqcmd: false,
        }
    }

    #[test]
    fn a_current_processor_gets_what_it_shows() {
        let c = controls(&tigerlake(), all(), Pretend::default()).unwrap();
        assert!(c.mbec && c.mtf && c.ept_1g && c.cet);
        assert_eq!(c.primary & (1 << 15 | 1 << 16), 0, "CR3 moves do not exit");
        assert_eq!(c.secondary & SECONDARY_USER_WAIT, 0, "not allowed here");
        assert_ne!(c.secondary & SECONDARY_XSAVES, 0);
        assert_eq!(c.revision, 0x2B);
    }

    #[test]
    fn fallbacks_can_be_pretended() {
        let pretend = Pretend {
            no_mtf: true,
            no_mbec: true,
            ..Pretend::default()
        };
        let c = controls(&tigerlake(), all(), pretend).unwrap();
        assert!(!c.mbec && !c.mtf);
    }

    #[test]
    fn a_required_control_that_is_unknown_is_refused() {
        let mut raw = tigerlake();
        raw.secondary |= 1 << 17;
        assert_eq!(
            controls(&raw, all(), Pretend::default()),
            Err(StartError::UnknownRequiredControl)
        );
        let mut raw = tigerlake();
        raw.pin |= 1;
        assert_eq!(
            controls(&raw, all(), Pretend::default()),
            Err(StartError::UnknownRequiredControl)
        );
    }

    #[test]
    fn no_ept_is_refused() {
        for (bit, error) in [
            (6, StartError::NoFourLevelWalk),
            (14, StartError::NoWriteBackTables),
            (16, StartError::NoEpt),
            (20, StartError::NoInvept),
            (25, StartError::NoInvept),
        ] {
            let mut raw = tigerlake();
            raw.ept_vpid &= !(1 << bit);
            assert_eq!(controls(&raw, all(), Pretend::default()), Err(error));
        }
        let mut raw = tigerlake();
        raw.secondary &= !(u64::from(SECONDARY_EPT) << 32);
        assert_eq!(
            controls(&raw, all(), Pretend::default()),
            Err(StartError::NoEpt)
        );
    }

    proptest! {
        #[test]
        fn no_word_breaks_its_msr(
            pin: u64, primary: u64, secondary: u64, exit: u64, entry: u64, ept_vpid: u64
        ) {
            let raw = Raw { pin, primary, secondary, exit, entry, ept_vpid, ..tigerlake() };
            if let Ok(c) = controls(&raw, all(), Pretend::default()) {
                for (word, msr) in [
                    (c.pin, pin), (c.primary, primary), (c.secondary, secondary),
                    (c.exit, exit), (c.entry, entry),
                ] {
                    prop_assert_eq!(word & !allowed(msr), 0);
                    prop_assert_eq!(required(msr) & allowed(msr) & !word, 0);
                }
            }
        }
    }
}
