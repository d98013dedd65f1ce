//! `cargo lab`: the machine on which the real driver runs, from the command line.
//!
//! The host's half of the lab: it installs what is missing (`setup`), builds the
//! images (`images`), boots machines (`machine`), runs the `hvdetect` program
//! against them (`session`), looks into them from outside (`witness`), and
//! offers all that as verbs (`verbs`) and as test cases (`cases`). The guest's
//! half is `tests/rom`, `tests/minint` and `tests/wdfldr`; they meet in the
//! frames of `tests/link` and, on our build of Bochs, in three ports
//! (`tests/emulators/bochs/instrument`).
//!
//! Results go to standard output, everything else to standard error. Exit codes:
//! 0 as asked, 1 something failed, 2 usage.

mod cases;
mod code;
mod finding;
mod images;
mod machine;
#[cfg(test)]
mod pages;
mod place;
mod progress;
mod session;
mod setup;
mod verbs;
mod witness;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", about, version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install and build what the lab needs (the other verbs do it too)
    Setup,
    /// Build every image of the machine
    Build(verbs::build::Arguments),
    /// Boot a machine, load drivers, run commands against it
    Run(verbs::run::Arguments),
    /// Show it: four attacks on four processors, and what is found
    Demo(verbs::demo::Arguments),
    /// Run the test cases
    Test(verbs::test::Arguments),
    /// Count what the hypervisor costs
    Bench(verbs::bench::Arguments),
    /// Run clippy over the crates that compile for bare metal alone
    Lint,
    /// List the test cases
    List(verbs::list::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup => verbs::setup::run(),
        Verb::Build(arguments) => verbs::build::run(&arguments),
        Verb::Run(arguments) => verbs::run::run(&arguments),
        Verb::Demo(arguments) => verbs::demo::run(&arguments),
        Verb::Test(arguments) => verbs::test::run(&arguments),
        Verb::Bench(arguments) => verbs::bench::run(&arguments),
        Verb::Lint => verbs::lint::run(),
        Verb::List(arguments) => verbs::list::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
