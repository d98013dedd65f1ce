//! VMCS fields by name (Intel SDM vol. 3, appendix B, "Field Encoding in VMCS").
//!
//! The encodings come from the `x86` crate; those it does not have are added
//! here.

pub use x86::vmx::vmcs::{control, guest, host, ro};

/// Guest S_CET.
pub const GUEST_S_CET: u32 = 0x6828;
/// Guest SSP.
pub const GUEST_SSP: u32 = 0x682A;
/// Guest interrupt-SSP-table address.
pub const GUEST_ISST: u32 = 0x682C;
/// Host S_CET.
pub const HOST_S_CET: u32 = 0x6C18;
/// Host SSP.
pub const HOST_SSP: u32 = 0x6C1A;
/// Host interrupt-SSP-table address.
pub const HOST_ISST: u32 = 0x6C1C;
