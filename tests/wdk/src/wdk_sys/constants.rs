//! Generated: every constant of the headers.
#![allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    non_upper_case_globals,
    unreachable_pub,
    dead_code
)]

use super::bindings::*;

include!(concat!(env!("OUT_DIR"), "/constants.rs"));
