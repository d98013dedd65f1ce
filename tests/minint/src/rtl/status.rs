//! The NTSTATUS values that MiniNT returns (\[MS-ERREF\] 2.3.1).
//!
//! Constants; any IRQL.

use wdk_standin::wdk_sys::NTSTATUS;

macro_rules! statuses {
    ($($name:ident = $value:literal;)*) => {
        $(
            #[doc = stringify!($name)]
            pub(crate) const $name: NTSTATUS = ($value as u32).cast_signed();
        )*

        /// The name of a status, for the log.
        pub(crate) fn name(status: NTSTATUS) -> &'static str {
            match status.cast_unsigned() {
                $($value => stringify!($name),)*
                _ => "NTSTATUS",
            }
        }
    };
}

statuses! {
    STATUS_SUCCESS = 0x0000_0000;
    STATUS_PENDING = 0x0000_0103;
    STATUS_OBJECT_NAME_EXISTS = 0x4000_0000;
    STATUS_BUFFER_OVERFLOW = 0x8000_0005;
    STATUS_NO_MORE_ENTRIES = 0x8000_001A;
    STATUS_INVALID_INFO_CLASS = 0xC000_0003;
    STATUS_INFO_LENGTH_MISMATCH = 0xC000_0004;
    STATUS_INVALID_HANDLE = 0xC000_0008;
    STATUS_INVALID_PARAMETER = 0xC000_000D;
    STATUS_NO_SUCH_DEVICE = 0xC000_000E;
    STATUS_INVALID_DEVICE_REQUEST = 0xC000_0010;
    STATUS_MORE_PROCESSING_REQUIRED = 0xC000_0016;
    STATUS_ACCESS_DENIED = 0xC000_0022;
    STATUS_BUFFER_TOO_SMALL = 0xC000_0023;
    STATUS_OBJECT_TYPE_MISMATCH = 0xC000_0024;
    STATUS_OBJECT_NAME_INVALID = 0xC000_0033;
    STATUS_OBJECT_NAME_NOT_FOUND = 0xC000_0034;
    STATUS_OBJECT_NAME_COLLISION = 0xC000_0035;
    STATUS_OBJECT_PATH_NOT_FOUND = 0xC000_003A;
    STATUS_DELETE_PENDING = 0xC000_0056;
    STATUS_INVALID_IMAGE_FORMAT = 0xC000_007B;
    STATUS_INSUFFICIENT_RESOURCES = 0xC000_009A;
    STATUS_NOT_SUPPORTED = 0xC000_00BB;
    STATUS_NOT_FOUND = 0xC000_0225;
    STATUS_CANNOT_DELETE = 0xC000_0121;
    STATUS_DLL_NOT_FOUND = 0xC000_0135;
    STATUS_IMAGE_ALREADY_LOADED = 0xC000_010E;
    STATUS_IMAGE_CHECKSUM_MISMATCH = 0xC000_0221;
    STATUS_DRIVER_ORDINAL_NOT_FOUND = 0xC000_0262;
    STATUS_DRIVER_ENTRYPOINT_NOT_FOUND = 0xC000_0263;
    STATUS_KEY_DELETED = 0xC000_017C;
    STATUS_REVISION_MISMATCH = 0xC000_0059;
}

/// `NT_SUCCESS`.
pub(crate) const fn success(status: NTSTATUS) -> bool {
    status >= 0
}

/// `NT_ERROR`: severity 3.
pub(crate) const fn is_error(status: NTSTATUS) -> bool {
    status.cast_unsigned() >> 30 == 3
}
