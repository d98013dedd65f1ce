//! The tests on an NTSTATUS (ntdef.h): its two top bits are the severity.

#![allow(non_snake_case)]

use super::NTSTATUS;

/// Success or informational.
#[must_use]
pub const fn NT_SUCCESS(nt_status: NTSTATUS) -> bool {
    nt_status >= 0
}

/// Informational (0x40000000 to 0x7FFFFFFF).
#[must_use]
pub const fn NT_INFORMATION(nt_status: NTSTATUS) -> bool {
    nt_status.cast_unsigned() >> 30 == 1
}

/// Warning (0x80000000 to 0xBFFFFFFF).
#[must_use]
pub const fn NT_WARNING(nt_status: NTSTATUS) -> bool {
    nt_status.cast_unsigned() >> 30 == 2
}

/// Error (0xC0000000 and above).
#[must_use]
pub const fn NT_ERROR(nt_status: NTSTATUS) -> bool {
    nt_status.cast_unsigned() >> 30 == 3
}
