//! AMD SVM. Same file names as `vmx`, so that the two can be read side by side.

pub mod caps;
pub mod entry;
pub mod exit;
pub mod fields;
#[cfg(test)]
mod gmet;
pub mod interrupted;
pub mod launch;
pub mod leave;
pub mod msr;
pub mod npf;
pub mod probe;
pub mod vcpu;

/// The core's virtual machine control block.
pub const VMCB: usize = 0;
/// The block in which VMSAVE keeps what root mode runs with.
pub const HOST_VMCB: usize = 1;
/// The page in which VMRUN saves the host's state (VM_HSAVE_PA).
pub const HOST_SAVE: usize = 2;

/// AMD's virtual processor.
#[derive(Debug)]
pub struct Svm;

/// What all cores share of AMD's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// What the processor can do.
    pub controls: caps::Controls,
    /// Root of the shared nested tables.
    pub n_cr3: u64,
}
