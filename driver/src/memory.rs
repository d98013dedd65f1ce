//! Reading system memory that may vanish while it is read.
//!
//! `MmCopyMemory` fails where a plain read would bugcheck. IRQL <= APC_LEVEL.

use alloc::vec::Vec;

use crate::wdk_crates::wdk_sys::{
    MM_COPY_ADDRESS, MM_COPY_MEMORY_VIRTUAL, NT_SUCCESS, PVOID, SIZE_T, ntddk::MmCopyMemory,
};

/// Copies what lies at `va` into `to`; the number of bytes that could be read.
pub(crate) fn copy(va: u64, to: &mut [u8]) -> usize {
    let mut source = MM_COPY_ADDRESS::default();
    source.__bindgen_anon_1.VirtualAddress = va as PVOID;
    let mut copied: SIZE_T = 0;
    // SAFETY: `to` is ours and that long; the source may be anything.
    let status = unsafe {
        MmCopyMemory(
            to.as_mut_ptr().cast(),
            source,
            to.len() as SIZE_T,
            MM_COPY_MEMORY_VIRTUAL,
            &raw mut copied,
        )
    };
    // A partial copy is an error, but tells how far it came.
    if NT_SUCCESS(status) || copied > 0 {
        usize::try_from(copied).unwrap_or(0).min(to.len())
    } else {
        0
    }
}

/// A copy of `bytes` bytes at `va`; `None` without memory or if not all of it
/// could be read.
pub(crate) fn read(va: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut copy_of = Vec::new();
    copy_of.try_reserve_exact(bytes).ok()?;
    copy_of.resize(bytes, 0);
    (copy(va, &mut copy_of) == bytes).then_some(copy_of)
}
