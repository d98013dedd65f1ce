//! `cargo lab lint`.

use crate::{images, setup};
use anyhow::Result;
use std::process::ExitCode;

/// Lints what a plain `cargo clippy` does not reach: the crates that compile for
/// bare metal alone.
pub(crate) fn run() -> Result<ExitCode> {
    let tools = setup::all()?;
    images::lint(&tools.toolchain)?;
    Ok(ExitCode::SUCCESS)
}
