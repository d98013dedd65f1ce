//! `cargo lab setup`.

use crate::images::{self, Profile, Wanted};
use crate::{progress, setup};
use anyhow::Result;
use std::process::ExitCode;

/// Makes the machine ready, images included, so that the next verb starts at
/// once.
pub(crate) fn run() -> Result<ExitCode> {
    let tools = setup::all()?;
    let images = images::build(&tools.toolchain, Profile::Release, Wanted::All)?;
    progress::note(&format!("Bochs: {}", tools.bochs.program.display()));
    progress::note(&format!("images: {}", images.directory().display()));
    Ok(ExitCode::SUCCESS)
}
