//! Why the hypervisor could not be started, as small values.
//!
//! Conversion to NTSTATUS happens in the driver, the sentence for people is the
//! command-line tool's.

use crate::instr::VmFail;

/// The step of taking a core over at which something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// VMXON.
    Enter,
    /// VMCLEAR of the core's VMCS.
    Clear,
    /// VMPTRLD of the core's VMCS.
    Load,
    /// VMLAUNCH.
    Launch,
    /// The first hypercall of the new guest.
    Activate,
}

/// Why a start was refused or undone. The machine is as before in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The processor is of no vendor that is known here.
    UnknownVendor,
    /// CPUID says that a hypervisor is present.
    HypervisorPresent,
    /// The processor has neither VMX nor SVM.
    NoVmx,
    /// IA32_FEATURE_CONTROL is locked with VMX off, or VM_CR with SVM off: a firmware
    /// setting.
    LockedOff,
    /// VM_CR.SVMDIS is set but not locked: software has switched SVM off.
    SwitchedOff,
    /// IA32_FEATURE_CONTROL or VM_CR differs between cores.
    UnequalFirmware,
    /// CR4.VMXE or EFER.SVME is set: somebody uses it.
    VmxInUse,
    /// No EPT or no 2 MB leaves; no nested paging.
    NoEpt,
    /// No four-level walk of nested tables.
    NoFourLevelWalk,
    /// Nested tables cannot be write-back.
    NoWriteBackTables,
    /// No INVEPT of a single context.
    NoInvept,
    /// Memory is encrypted for a guest (SEV).
    EncryptedMemory,
    /// No unrestricted guest, no VPID or no MSR bitmaps.
    MissingControl,
    /// A control is required that is not known here.
    UnknownRequiredControl,
    /// No address-space identifier but the host's.
    TooFewAsids,
    /// CR4.FRED is set.
    Fred,
    /// Kernel shadow stacks are active.
    ShadowStacks,
    /// The number of cores is zero or above what is supported.
    Cores,
    /// Not enough memory.
    NoMemory,
    /// The memory map could not be read.
    MemoryMap,
    /// The reserved page tables do not suffice.
    Tables,
    /// The driver image could not be copied.
    Image,
    /// A core could not be reached.
    Unreachable {
        /// Which core.
        core: u32,
    },
    /// A core failed; those before it have been given back.
    Core {
        /// Which core.
        core: u32,
        /// At which step.
        step: Step,
        /// How the instruction failed.
        fail: VmFail,
    },
}
