//! `log`: the findings of earlier days.

use crate::failure::Failure;
use crate::log::{self, Line};
use crate::output::Output;
use crate::render::finding;
use std::path::Path;

/// Whether there were findings.
pub(super) fn run(given: Option<&Path>, json: bool, output: &Output) -> Result<bool, Failure> {
    let path = log::path(given)?;
    let mut found = false;
    let lines =
        log::read(&path).map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
    for line in lines {
        match line? {
            Line::Good(record) => {
                found = true;
                output.print(&if json {
                    record.json() + "\n"
                } else {
                    finding::short(&record, output.paint)
                })?;
            }
            Line::Bad(number, why) => {
                eprintln!("hvdetect: line {number} of the log is no finding ({why}), skipped.");
            }
            Line::Torn(number) => {
                eprintln!("hvdetect: line {number} of the log is torn (a crash?), skipped.");
            }
        }
    }
    Ok(found)
}
