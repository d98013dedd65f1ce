//! `cargo lab build`.

use crate::images::{self, Profile, Wanted};
use crate::setup;
use anyhow::Result;
use std::process::ExitCode;

/// Arguments of `cargo lab build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Build with assertions and overflow checks on
    #[arg(long)]
    debug: bool,
}

/// Builds every image and prints its path.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tools = setup::all()?;
    let profile = if arguments.debug {
        Profile::Debug
    } else {
        Profile::Release
    };
    let images = images::build(&tools.toolchain, profile, Wanted::All)?;
    for path in images.all() {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
