//! Intel VMX. Same file names as `svm`, so that the two can be read side by side.

pub mod caps;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod leave;
pub mod probe;
pub mod vcpu;
