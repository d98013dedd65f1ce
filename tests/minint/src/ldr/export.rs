//! Export look-up across modules, and `MmGetSystemRoutineAddress`.
//!
//! `HAL.dll` is an alias of the kernel: since Windows 10 2004 the genuine one only
//! forwards to `ntoskrnl.exe`, too.

use wdk_standin::wdk_sys::{PUNICODE_STRING, PVOID};

use super::module::{find, image};
use super::pe::{Export, Exports, Symbol};
use crate::hal::boot;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};

/// Forwards followed before an export counts as missing.
const DEEPEST: u32 = 4;

/// Whether a library's exports are the kernel's.
pub(super) fn is_kernel(library: &str) -> bool {
    let stem = library.rsplit_once('.').map_or(library, |(stem, _)| stem);
    stem.eq_ignore_ascii_case("ntoskrnl") || stem.eq_ignore_ascii_case("hal")
}

/// Address of an export, `None` if the library is not loaded or lacks it.
pub(super) fn resolve(library: &str, symbol: Symbol<'_>) -> Option<u64> {
    resolve_at(library, symbol, DEEPEST)
}

fn resolve_at(library: &str, symbol: Symbol<'_>, depth: u32) -> Option<u64> {
    let (base, size) = if is_kernel(library) {
        (boot::kernel_base(), boot::kernel_size())
    } else {
        let module = find(library)?;
        (module.base, module.size)
    };
    match Exports::of(image(base, size))?.find(symbol)? {
        Export::Rva(rva) => Some((base + rva as usize) as u64),
        Export::Forward(library, symbol) if depth > 0 => {
            let library = core::str::from_utf8(library).ok()?;
            let file = alloc::format!("{library}.dll");
            resolve_at(
                if library.contains('.') {
                    library
                } else {
                    &file
                },
                symbol,
                depth - 1,
            )
        }
        Export::Forward(..) => None,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn MmGetSystemRoutineAddress(name: PUNICODE_STRING) -> PVOID {
    const API: &str = "MmGetSystemRoutineAddress";
    require_irql(PASSIVE_LEVEL, API);
    let name = crate::rtl::unicode::text(name, API);
    resolve("ntoskrnl.exe", Symbol::Name(name.as_bytes()))
        .map_or(core::ptr::null_mut(), |address| {
            core::ptr::with_exposed_provenance_mut(address as usize)
        })
}
