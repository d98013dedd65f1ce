//! `wdk`: debugger output and the checks every driver uses.

pub use crate::wdk_sys::NT_SUCCESS as nt_success;
