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
