//! `cargo lab list`: the cases (specimens among them) and the processor models.

use crate::cases;
use anyhow::Result;
use std::process::ExitCode;

/// Arguments of `cargo lab list`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print docs/src/seeded-faults.md instead
    #[arg(long)]
    seeded: bool,
}

/// Prints every case with what it shows.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.seeded {
        print!("{}", cases::seeded_page()?);
        return Ok(ExitCode::SUCCESS);
    }
    for instance in cases::instances()? {
        println!(
            "{:44} {}{}",
            instance.name,
            instance.about,
            if instance.long { " (--long)" } else { "" }
        );
    }
    println!(
        "\nProcessor models of the matrix: {}; processors: {}. Others: sapphire_rapids, \
         broadwell_ult, and what `bochs --help cpu` lists.",
        cases::MODELS
            .iter()
            .chain(&cases::AMD_MODELS)
            .map(|model| model.name)
            .collect::<Vec<_>>()
            .join(", "),
        cases::CPUS.map(|count| count.to_string()).join(", ")
    );
    Ok(ExitCode::SUCCESS)
}
