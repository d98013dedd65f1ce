//! Security descriptors, absolute form only.
//!
//! Any IRQL: they are the caller's memory.

use wdk_standin::wdk_sys::{
    BOOLEAN, NTSTATUS, PACL, PSECURITY_DESCRIPTOR, SECURITY_DESCRIPTOR, ULONG,
};

use super::status::{STATUS_REVISION_MISMATCH, STATUS_SUCCESS};
use crate::ob::argument::{borrow, put};

const REVISION: u8 = 1;
const DACL_PRESENT: u16 = 4;
const DACL_DEFAULTED: u16 = 8;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCreateSecurityDescriptor(
    descriptor: PSECURITY_DESCRIPTOR,
    revision: ULONG,
) -> NTSTATUS {
    if revision != u32::from(REVISION) {
        return STATUS_REVISION_MISMATCH;
    }
    let empty = SECURITY_DESCRIPTOR {
        Revision: REVISION,
        ..SECURITY_DESCRIPTOR::default()
    };
    put!(
        descriptor.cast::<SECURITY_DESCRIPTOR>(),
        empty,
        "RtlCreateSecurityDescriptor"
    );
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlSetDaclSecurityDescriptor(
    descriptor: PSECURITY_DESCRIPTOR,
    present: BOOLEAN,
    dacl: PACL,
    defaulted: BOOLEAN,
) -> NTSTATUS {
    const API: &str = "RtlSetDaclSecurityDescriptor";
    let descriptor = borrow!(descriptor.cast::<SECURITY_DESCRIPTOR>(), API);
    if descriptor.Revision != REVISION {
        return STATUS_REVISION_MISMATCH;
    }
    descriptor.Control &= !(DACL_PRESENT | DACL_DEFAULTED);
    if present != 0 {
        descriptor.Control |= DACL_PRESENT;
        descriptor.Dacl = dacl;
        if defaulted != 0 {
            descriptor.Control |= DACL_DEFAULTED;
        }
    }
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlValidSecurityDescriptor(
    descriptor: PSECURITY_DESCRIPTOR,
) -> BOOLEAN {
    const API: &str = "RtlValidSecurityDescriptor";
    BOOLEAN::from(borrow!(descriptor.cast::<SECURITY_DESCRIPTOR>(), API).Revision == REVISION)
}
