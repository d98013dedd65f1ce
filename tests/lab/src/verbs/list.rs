//! `cargo lab list`.

use crate::cases;
use anyhow::Result;
use std::process::ExitCode;

/// Prints every case with what it shows.
pub(crate) fn run() -> Result<ExitCode> {
    for instance in cases::instances()? {
        println!(
            "{:44} {}{}",
            instance.name,
            instance.about,
            if instance.long { " (--long)" } else { "" }
        );
    }
    Ok(ExitCode::SUCCESS)
}
