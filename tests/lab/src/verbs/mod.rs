//! The verbs of `cargo lab`, one file each: arguments in, exit code out.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod lint;
pub(crate) mod list;
mod processor;
pub(crate) mod run;
pub(crate) mod setup;
pub(crate) mod test;
