//! MiniNT's parts that need no kernel, compiled for the host so that their unit
//! tests run with `cargo test`.
//!
//! MiniNT itself is built for its own target only; this crate takes its files by
//! path and adds nothing but the tests of a whole image (`image`).
#![cfg(test)]

extern crate alloc;

#[allow(
    dead_code,
    unreachable_pub,
    reason = "the kernel uses what these tests do not"
)]
#[path = "../../src/rtl/format.rs"]
mod format;
mod image;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the kernel uses what these tests do not"
)]
#[path = "../../src/ob/namespace.rs"]
mod namespace;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the kernel uses what these tests do not"
)]
#[path = "../../src/ldr/pe.rs"]
mod pe;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the kernel uses what these tests do not"
)]
#[path = "../../src/cm/tree.rs"]
mod tree;
