//! Generated: every type of the headers.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::cargo,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#![allow(
    missing_docs,
    non_upper_case_globals,
    non_camel_case_types,
    non_snake_case,
    unreachable_pub,
    unnecessary_transmutes,
    unsafe_op_in_unsafe_fn,
    improper_ctypes,
    dead_code
)]

include!(concat!(env!("OUT_DIR"), "/types.rs"));
