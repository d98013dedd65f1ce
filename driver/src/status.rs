//! Errors as NTSTATUS and as numbers of the wire format.
//!
//! The only place that turns the hypervisor's and the detector's small enums
//! into what the system and the command-line tool are told. Pure values.

use detector::wire::{Malformed, StartError};
use hv_core::error::{StartError as LaunchError, Step};
use hv_core::instr::VmFail;

use crate::wdk_crates::wdk_sys::{
    NTSTATUS, STATUS_BUFFER_TOO_SMALL, STATUS_DEVICE_NOT_READY, STATUS_INFO_LENGTH_MISMATCH,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_BUFFER_SIZE, STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_PARAMETER, STATUS_REVISION_MISMATCH, STATUS_TOO_MANY_OPENED_FILES,
};

/// An NTSTATUS that is an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Status(NTSTATUS);

impl Status {
    /// No memory.
    pub(crate) const NO_MEMORY: Self = Self(STATUS_INSUFFICIENT_RESOURCES);
    /// The driver is being loaded or unloaded.
    pub(crate) const NOT_READY: Self = Self(STATUS_DEVICE_NOT_READY);
    /// An IOCTL code that is none of ours.
    pub(crate) const UNKNOWN_CODE: Self = Self(STATUS_INVALID_DEVICE_REQUEST);
    /// Less input or less room for output than the code needs.
    pub(crate) const TOO_SHORT: Self = Self(STATUS_BUFFER_TOO_SMALL);
    /// More input or output than the code can use.
    pub(crate) const TOO_LONG: Self = Self(STATUS_INVALID_BUFFER_SIZE);
    /// Too many handles are open.
    pub(crate) const TOO_MANY_HANDLES: Self = Self(STATUS_TOO_MANY_OPENED_FILES);

    /// An error that NT or the framework reported.
    pub(crate) const fn from_nt(status: NTSTATUS) -> Self {
        Self(status)
    }

    /// For NT and the framework.
    pub(crate) const fn as_nt(self) -> NTSTATUS {
        self.0
    }
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self(match malformed {
            Malformed::Length | Malformed::Size => STATUS_INFO_LENGTH_MISMATCH,
            Malformed::Version => STATUS_REVISION_MISMATCH,
            Malformed::Magic | Malformed::Flags => STATUS_INVALID_PARAMETER,
        })
    }
}

/// Why monitoring did not start or stop, as START and STOP answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// The cause.
    pub(crate) error: StartError,
    /// The core that failed, if one did.
    pub(crate) core: Option<u32>,
    /// More about the cause; what depends on it.
    pub(crate) detail: u64,
}

impl Failure {
    /// A failure that concerns no single core.
    pub(crate) const fn new(error: StartError) -> Self {
        Self {
            error,
            core: None,
            detail: 0,
        }
    }

    /// The core as the wire format has it.
    pub(crate) const fn core_number(self) -> u32 {
        match self.core {
            Some(core) => core,
            None => u32::MAX,
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::UnknownVendor => Self::new(StartError::VendorUnsupported),
            LaunchError::HypervisorPresent => Self::new(StartError::HypervisorPresent),
            LaunchError::NoVmx => Self::new(StartError::NoVirtualization),
            LaunchError::LockedOff => Self::new(StartError::VirtualizationLockedOff),
            LaunchError::SwitchedOff => Self::new(StartError::SwitchedOff),
            LaunchError::UnequalFirmware => Self::new(StartError::UnequalFirmware),
            LaunchError::VmxInUse => Self::new(StartError::VirtualizationInUse),
            LaunchError::NoEpt => Self::new(StartError::NoEpt),
            LaunchError::NoFourLevelWalk => Self::new(StartError::NoFourLevelWalk),
            LaunchError::NoWriteBackTables => Self::new(StartError::NoWriteBackTables),
            LaunchError::NoInvept => Self::new(StartError::NoInvept),
            LaunchError::MissingControl => Self::new(StartError::MissingControl),
            LaunchError::TooFewAsids => Self::new(StartError::TooFewAsids),
            LaunchError::UnknownRequiredControl => Self::new(StartError::UnknownRequiredControl),
            LaunchError::ShadowStacks => Self::new(StartError::ShadowStacks),
            LaunchError::Fred => Self::new(StartError::Fred),
            LaunchError::EncryptedMemory => Self::new(StartError::EncryptedMemory),
            LaunchError::Cores => Self::new(StartError::TooManyCores),
            LaunchError::NoMemory => Self::new(StartError::NoMemory),
            LaunchError::Tables => Self::new(StartError::NoTables),
            LaunchError::Image => Self::new(StartError::ImageUnreadable),
            LaunchError::MemoryMap => Self::new(StartError::MemoryMap),
            LaunchError::Unreachable { core } => Self {
                error: StartError::CoreUnreachable,
                core: Some(core),
                detail: 0,
            },
            LaunchError::Core { core, step, fail } => Self {
                error: match step {
                    Step::Launch => StartError::EntryFailed,
                    Step::Enter | Step::Clear | Step::Load | Step::Activate => {
                        StartError::CoreFailed
                    }
                },
                core: Some(core),
                detail: match fail {
                    VmFail::Valid(number) => number.into(),
                    VmFail::Invalid => 0,
                    // The basic exit reason of a refused entry.
                    VmFail::Refused => 33,
                },
            },
        }
    }
}
