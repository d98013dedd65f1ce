//! Security as far as drivers see it here: every caller is the system or an
//! administrator, and has every privilege.
//!
//! No state; IRQL PASSIVE_LEVEL as documented.

use wdk_standin::wdk_sys::{
    ACCESS_MASK, BOOLEAN, KPROCESSOR_MODE, LUID, NTSTATUS, PGENERIC_MAPPING, PSECURITY_DESCRIPTOR,
    PSECURITY_SUBJECT_CONTEXT, PVOID,
};

use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, put};
use crate::rtl::status::STATUS_SUCCESS;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn SeSinglePrivilegeCheck(
    _privilege: LUID,
    _mode: KPROCESSOR_MODE,
) -> BOOLEAN {
    require_irql(PASSIVE_LEVEL, "SeSinglePrivilegeCheck");
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn SeAccessCheck(
    _descriptor: PSECURITY_DESCRIPTOR,
    _context: PSECURITY_SUBJECT_CONTEXT,
    _locked: BOOLEAN,
    desired: ACCESS_MASK,
    previous: ACCESS_MASK,
    _privileges: PVOID,
    _mapping: PGENERIC_MAPPING,
    _mode: KPROCESSOR_MODE,
    granted: *mut ACCESS_MASK,
    status: *mut NTSTATUS,
) -> BOOLEAN {
    const API: &str = "SeAccessCheck";
    require_irql(PASSIVE_LEVEL, API);
    put!(
        granted,
        crate::io::access::map_generic(desired) | previous,
        API
    );
    put!(status, STATUS_SUCCESS, API);
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn SeCaptureSubjectContext(context: PSECURITY_SUBJECT_CONTEXT) {
    const API: &str = "SeCaptureSubjectContext";
    require_irql(PASSIVE_LEVEL, API);
    let context = borrow!(context, API);
    context.ClientToken = core::ptr::null_mut();
    context.PrimaryToken = crate::ex::event::current_process();
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn SeReleaseSubjectContext(context: PSECURITY_SUBJECT_CONTEXT) {
    const API: &str = "SeReleaseSubjectContext";
    require_irql(PASSIVE_LEVEL, API);
    borrow!(context, API).PrimaryToken = core::ptr::null_mut();
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn SeTokenIsAdmin(_token: PVOID) -> BOOLEAN {
    1
}
