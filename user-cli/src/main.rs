//! `hvdetect`: starts and stops the monitor and shows what it found.
//!
//! Layers, each using only the one below: `command` (one file a verb) →
//! `session` (typed requests, version check) → `device` (bytes in, bytes out:
//! `\\.\hvdetect` on Windows, the lab's link elsewhere). `record` is a finding as
//! the tool knows it, from the driver or from the log; `render` makes text of it.
//!
//! Data goes to standard output, everything else to standard error. What comes
//! from the driver or a file is hostile: module names are chosen by whoever wrote
//! the rootkit, so nothing reaches a terminal unescaped.

mod args;
mod command;
mod device;
mod escape;
mod failure;
mod interrupt;
mod log;
mod output;
mod record;
mod render;
mod session;
mod time;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match command::run(&args) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("hvdetect: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
