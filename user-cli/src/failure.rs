//! What went wrong, as an exit code and a sentence.
//!
//! The codes are stable: scripts rely on them.

use crate::device::DeviceError;
use detector::wire::{Malformed, StartError};
use std::fmt::Write;
use std::io;

/// Anything that has no code of its own.
pub(crate) const OTHER: u8 = 1;
/// Wrong usage (clap's own code).
pub(crate) const USAGE: u8 = 2;
/// Not run as an administrator.
pub(crate) const NOT_ELEVATED: u8 = 3;
/// The driver is not there.
pub(crate) const DRIVER_ABSENT: u8 = 4;
/// This machine cannot be monitored.
pub(crate) const UNFIT: u8 = 5;
/// Tool and driver do not match.
pub(crate) const VERSION_MISMATCH: u8 = 6;
/// There are findings, and the caller asked to be told so.
pub(crate) const FINDINGS: u8 = 10;

/// Ends the program.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// One sentence or two, for standard error; empty: say nothing.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn other(message: impl Into<String>) -> Failure {
        Failure::new(OTHER, message)
    }

    pub(crate) fn mismatch(detail: &str) -> Failure {
        Failure::new(
            VERSION_MISMATCH,
            format!(
                "driver and tool do not match ({detail}). Install both from the same release \
                 and load the driver again."
            ),
        )
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        // The reader of a pipe has enough: no reason to complain.
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::new(0, "")
        } else {
            Failure::other(error.to_string())
        }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        Failure::mismatch(match malformed {
            Malformed::Length => "a reply of another length",
            Malformed::Magic => "a reply that is not hvdetect's",
            Malformed::Version => "a reply of another protocol version",
            Malformed::Size => "a reply of another size",
            Malformed::Flags => "a reply with unknown flags",
        })
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        match error {
            DeviceError::Absent(why) => {
                Failure::new(DRIVER_ABSENT, format!("{why}\n{}", how_to_load()))
            }
            DeviceError::AccessDenied => Failure::new(
                NOT_ELEVATED,
                "the driver may be used by administrators only. Run this from an elevated prompt.",
            ),
            DeviceError::UnknownRequest => Failure::mismatch("the driver does not know a request"),
            DeviceError::Gone(why) => Failure::new(DRIVER_ABSENT, why),
            DeviceError::Status { what, code, .. } => {
                Failure::other(format!("{what}: the driver answered {code:#010x}"))
            }
        }
    }
}

const fn how_to_load() -> &'static str {
    if cfg!(windows) {
        "Load it with `sc start hvdetect` from an elevated prompt; if it is not installed, \
         install hvdetect.inf first."
    } else {
        "Off Windows this tool talks to the lab: start a machine with `cargo lab run` and set \
         HVDETECT_LAB to the address that it prints (127.0.0.1:PORT)."
    }
}

/// The sentence for an error of the driver, and its exit code.
pub(crate) fn start_error(raw: u32, core: u32, detail: u64) -> Failure {
    let Some(error) = StartError::from_raw(raw) else {
        return Failure::mismatch(&format!("unknown error {raw}"));
    };
    let (exit, text) = sentence(error);
    let mut message = String::from(text);
    // Writing to a String cannot fail.
    if core != u32::MAX {
        let _ = write!(message, " (core {core})");
    }
    if detail != 0 {
        let _ = write!(message, " [detail {detail:#x}]");
    }
    Failure::new(exit, message)
}

#[expect(clippy::too_many_lines, reason = "one sentence for each error")]
fn sentence(error: StartError) -> (u8, &'static str) {
    match error {
        StartError::HypervisorPresent => (
            UNFIT,
            "a hypervisor runs already (Hyper-V, VBS, or this is a virtual machine). Switch off \
             Memory Integrity and Hyper-V (`bcdedit /set hypervisorlaunchtype off`) and restart.",
        ),
        StartError::VirtualizationLockedOff => (
            UNFIT,
            "the firmware has switched virtualization off and locked it. Enable VT-x or SVM in \
             the firmware's settings.",
        ),
        StartError::NoVirtualization => (UNFIT, "this processor has neither Intel VT-x nor AMD-V."),
        StartError::NoEpt => (
            UNFIT,
            "this processor has no nested page tables (Intel EPT, AMD RVI).",
        ),
        StartError::AlreadyStarted => (OTHER, "monitoring runs already."),
        StartError::NotStarted => (OTHER, "monitoring does not run."),
        StartError::Busy => (OTHER, "another start or stop is under way."),
        StartError::NoMemory => (OTHER, "there is not enough memory."),
        StartError::UnknownRequiredControl => (
            UNFIT,
            "this processor requires a virtualization control that this version does not know. \
             Nothing was changed.",
        ),
        StartError::MissingControl => (
            UNFIT,
            "this processor lacks a virtualization control that is needed.",
        ),
        StartError::CoreFailed => (
            OTHER,
            "a core could not be taken over; all others were given back.",
        ),
        StartError::Fred => (
            UNFIT,
            "FRED is enabled on this machine; this version does not support it.",
        ),
        StartError::VirtualizationInUse => (
            UNFIT,
            "somebody else uses VT-x (CR4.VMXE is set). Close VirtualBox, VMware and the like.",
        ),
        StartError::MemoryTypes => (
            UNFIT,
            "the memory type ranges (MTRRs) contradict each other.",
        ),
        StartError::AddressWidth => (
            UNFIT,
            "this machine has more physical address bits than this version maps.",
        ),
        StartError::TooManyCores => (
            UNFIT,
            "this machine has more cores than this version supports.",
        ),
        StartError::NoModules => (OTHER, "the list of loaded modules could not be read."),
        StartError::EntryFailed => (
            OTHER,
            "the processor refused to enter the guest; all cores were given back.",
        ),
        StartError::LeaveFailed => (
            OTHER,
            "a core could not be given back. Nothing was freed; restart the machine.",
        ),
        StartError::VendorUnsupported => (
            UNFIT,
            "this version does not support this processor's vendor yet.",
        ),
        StartError::UnequalFirmware => (
            UNFIT,
            "the firmware has set up virtualization differently on different cores \
             (IA32_FEATURE_CONTROL). A firmware update may mend this.",
        ),
        StartError::NoFourLevelWalk => (
            UNFIT,
            "this processor's nested page tables have no walk of four levels.",
        ),
        StartError::NoWriteBackTables => (
            UNFIT,
            "this processor cannot keep nested page tables in write-back memory.",
        ),
        StartError::NoInvept => (
            UNFIT,
            "this processor cannot invalidate the translations of one set of nested page tables \
             (INVEPT).",
        ),
        StartError::ShadowStacks => (
            UNFIT,
            "kernel shadow stacks are active on this machine; this version does not support them.",
        ),
        StartError::EncryptedMemory => (
            UNFIT,
            "this machine's memory is encrypted by a hypervisor (SEV); this version does not \
             support that.",
        ),
        StartError::NoTables => (
            OTHER,
            "the memory map of this machine needs more nested page tables than were reserved.",
        ),
        StartError::ImageUnreadable => (
            OTHER,
            "the driver's own image could not be copied. Load the driver again.",
        ),
        StartError::CoreUnreachable => (OTHER, "a core could not be reached; nothing was changed."),
        StartError::MemoryMap => (OTHER, "the list of physical memory could not be read."),
        StartError::SwitchedOff => (
            UNFIT,
            "AMD-V is switched off, but not locked (VM_CR.SVMDIS): the firmware or another \
             driver has done that. Switch it on in the firmware setup.",
        ),
        StartError::TooFewAsids => (
            UNFIT,
            "this processor has no address-space identifier for a guest.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_sentence_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for error in StartError::ALL {
            let (code, text) = sentence(*error);
            assert!(text.ends_with('.') && [OTHER, UNFIT].contains(&code));
            assert!(seen.insert(text), "{error:?}");
        }
        assert_eq!(start_error(999, u32::MAX, 0).code, VERSION_MISMATCH);
        let failed = start_error(StartError::CoreFailed as u32, 3, 0x1f);
        assert!(failed.message.ends_with("(core 3) [detail 0x1f]"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.code, failure.message.as_str()), (0, ""));
    }
}
