//! The image that stands in the module list as `HAL.dll`.
//!
//! Since Windows 10 2004 `hal.dll` holds nothing but forwards into `ntoskrnl.exe`.
//! Here it is two pages: PE headers, and one read-only section. Its exports are
//! resolved against the kernel by [`super::export`].

use alloc::string::ToString;
use alloc::vec::Vec;

use super::module::{Module, sections_of};
use crate::mm::image::{Rights, protect, reserve};

const PAGE: usize = 4096;
const NT_HEADERS: usize = 0x80;

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes the headers of a PE32+ image with one section.
fn write(image: &mut [u8], base: u64) {
    const OPTIONAL: usize = NT_HEADERS + 24;
    const SECTION: usize = OPTIONAL + 240;
    put(image, 0, b"MZ");
    put(image, 0x3C, &(NT_HEADERS as u32).to_le_bytes());
    put(image, NT_HEADERS, b"PE\0\0");
    put(image, NT_HEADERS + 4, &0x8664u16.to_le_bytes());
    put(image, NT_HEADERS + 6, &1u16.to_le_bytes());
    put(image, NT_HEADERS + 20, &240u16.to_le_bytes());
    // Executable image, large addresses, DLL.
    put(image, NT_HEADERS + 22, &0x2022u16.to_le_bytes());
    put(image, OPTIONAL, &0x20Bu16.to_le_bytes());
    put(image, OPTIONAL + 24, &base.to_le_bytes());
    put(image, OPTIONAL + 32, &(PAGE as u32).to_le_bytes());
    put(image, OPTIONAL + 36, &512u32.to_le_bytes());
    put(image, OPTIONAL + 56, &(2 * PAGE as u32).to_le_bytes());
    put(image, OPTIONAL + 60, &0x400u32.to_le_bytes());
    put(image, OPTIONAL + 68, &1u16.to_le_bytes());
    put(image, OPTIONAL + 108, &16u32.to_le_bytes());
    put(image, SECTION, b".rdata\0\0");
    put(image, SECTION + 8, &(PAGE as u32).to_le_bytes());
    put(image, SECTION + 12, &(PAGE as u32).to_le_bytes());
    // Initialized data, readable.
    put(image, SECTION + 36, &0x4000_0040u32.to_le_bytes());
}

/// Makes the image and enters it into the module table.
pub(super) fn enter() {
    let Some(memory) = reserve(2 * PAGE) else {
        return;
    };
    let base = memory.expose_provenance();
    // SAFETY: two pages that were just reserved, and nobody else's yet.
    let image = unsafe { core::slice::from_raw_parts_mut(memory, 2 * PAGE) };
    write(image, base as u64);
    let sections = sections_of(image);
    protect(memory, 2 * PAGE, Rights::ReadOnly);
    let _ = super::module::enter(Module {
        number: 0,
        name: "HAL.dll".to_string(),
        path: "\\SystemRoot\\system32\\HAL.dll".to_string(),
        base,
        size: 2 * PAGE,
        entry: 0,
        sections,
        imports: Vec::new(),
        references: 1,
        entry_address: 0,
    });
}
