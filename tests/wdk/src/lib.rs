//! The crates `wdk-sys`, `wdk` and `wdk-alloc` as modules, for machines without
//! a Windows Driver Kit.
//!
//! A driver that is written against the genuine crates compiles against this
//! one with `use wdk_standin::{wdk, wdk_alloc, wdk_sys}`: names, types and
//! signatures are the same. The bindings are made at build time by bindgen from
//! the DDK headers of mingw-w64 and the headers of this crate.
//!
//! * Without features: types and constants only. MiniNT uses that; it *is*
//!   ntoskrnl.exe and must not import from itself.
//! * `imports`: the functions of ntoskrnl.exe and HAL.dll, as raw-dylib imports
//!   on Windows targets. Elsewhere they only type-check.
//! * `kmdf`: what WdfDriverEntry.lib adds to a KMDF driver (`FxDriverEntry`).
#![no_std]

pub mod wdk;
#[cfg(feature = "imports")]
pub mod wdk_alloc;
pub mod wdk_sys;
