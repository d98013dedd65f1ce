//! Generated: the functions that ntoskrnl.exe and HAL.dll export.
#![allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    non_snake_case,
    non_upper_case_globals,
    improper_ctypes,
    unreachable_pub
)]

use super::bindings::*;

include!(concat!(env!("OUT_DIR"), "/ntddk.rs"));

// Inline in mingw-w64's headers, functions of the kernel in Microsoft's.
#[cfg_attr(
    windows,
    link(name = "ntoskrnl.exe", kind = "raw-dylib", modifiers = "+verbatim")
)]
unsafe extern "C" {
    pub fn KeGetCurrentIrql() -> KIRQL;
    pub fn KeLowerIrql(NewIrql: KIRQL);
    pub fn KfRaiseIrql(NewIrql: KIRQL) -> KIRQL;
    pub fn KeRaiseIrqlToDpcLevel() -> KIRQL;
    pub fn KeGetCurrentThread() -> PKTHREAD;
}
