//! Intel VMX. Same file names as `svm`, so that the two can be read side by side.

pub mod caps;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod launch;
pub mod leave;
pub mod probe;
pub mod vcpu;

/// The core's region for VMXON.
pub const VMXON: usize = 0;
/// The core's virtual-machine control structure.
pub const VMCS: usize = 1;

/// Intel's virtual processor.
#[derive(Debug)]
pub struct Vmx;

/// What all cores share of Intel's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// VMX controls.
    pub controls: caps::Controls,
    /// Bits of CR0 that VMX operation wants set and the guest does not own.
    pub cr0_fixed: u64,
    /// EPTP of the shared tables.
    pub eptp: u64,
}
