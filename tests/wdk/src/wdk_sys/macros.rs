//! What C has as macros and bindgen cannot translate.

use super::{POOL_FLAGS, PVOID, PWDF_OBJECT_ATTRIBUTES};

/// Absent object attributes.
pub const WDF_NO_OBJECT_ATTRIBUTES: PWDF_OBJECT_ATTRIBUTES = core::ptr::null_mut();
/// An absent event callback.
pub const WDF_NO_EVENT_CALLBACK: PVOID = core::ptr::null_mut();
/// An absent handle.
pub const WDF_NO_HANDLE: PVOID = core::ptr::null_mut();
/// An absent context.
pub const WDF_NO_CONTEXT: PVOID = core::ptr::null_mut();
/// Absent send options.
pub const WDF_NO_SEND_OPTIONS: PVOID = core::ptr::null_mut();

/// First of the flags that `ExAllocatePool2` must honour.
pub const POOL_FLAG_REQUIRED_START: POOL_FLAGS = 0x0000_0000_0000_0001;
/// Charge the quota of the current process.
pub const POOL_FLAG_USE_QUOTA: POOL_FLAGS = 0x0000_0000_0000_0001;
/// Leave the block as it is; otherwise it is zeroed.
pub const POOL_FLAG_UNINITIALIZED: POOL_FLAGS = 0x0000_0000_0000_0002;
/// Session pool.
pub const POOL_FLAG_SESSION: POOL_FLAGS = 0x0000_0000_0000_0004;
/// Align to the cache line.
pub const POOL_FLAG_CACHE_ALIGNED: POOL_FLAGS = 0x0000_0000_0000_0008;
/// Reserved.
pub const POOL_FLAG_RESERVED1: POOL_FLAGS = 0x0000_0000_0000_0010;
/// Raise an exception instead of giving null.
pub const POOL_FLAG_RAISE_ON_FAILURE: POOL_FLAGS = 0x0000_0000_0000_0020;
/// Nonpaged and not executable.
pub const POOL_FLAG_NON_PAGED: POOL_FLAGS = 0x0000_0000_0000_0040;
/// Nonpaged and executable.
pub const POOL_FLAG_NON_PAGED_EXECUTE: POOL_FLAGS = 0x0000_0000_0000_0080;
/// Paged pool.
pub const POOL_FLAG_PAGED: POOL_FLAGS = 0x0000_0000_0000_0100;
/// Reserved.
pub const POOL_FLAG_RESERVED2: POOL_FLAGS = 0x0000_0000_0000_0200;
/// Reserved.
pub const POOL_FLAG_RESERVED3: POOL_FLAGS = 0x0000_0000_0000_0400;
/// Last of the flags that must be honoured.
pub const POOL_FLAG_REQUIRED_END: POOL_FLAGS = 0x0000_0000_8000_0000;
/// First of the flags that may be ignored.
pub const POOL_FLAG_OPTIONAL_START: POOL_FLAGS = 0x0000_0001_0000_0000;
/// Special pool.
pub const POOL_FLAG_SPECIAL_POOL: POOL_FLAGS = 0x0000_0001_0000_0000;
/// Last of the flags that may be ignored.
pub const POOL_FLAG_OPTIONAL_END: POOL_FLAGS = 0x8000_0000_0000_0000;

/// Calls a KMDF function by name through the table the framework gave us. The
/// driver's globals are supplied; the other arguments are the function's own.
#[macro_export]
macro_rules! call_unsafe_wdf_function_binding {
    ($name:ident $(, $argument:expr)* $(,)?) => {
        $crate::wdk_sys::wdf::__private::$name($($argument),*)
    };
}

/// Asserts, in debug builds, that pageable code runs at IRQL <= `APC_LEVEL`.
#[doc(hidden)]
#[macro_export]
macro_rules! __wdk_paged_code {
    () => {
        debug_assert!(
            unsafe { $crate::wdk_sys::ntddk::KeGetCurrentIrql() }
                <= $crate::wdk_sys::APC_LEVEL as u8
        );
    };
}
pub use crate::__wdk_paged_code as PAGED_CODE;
