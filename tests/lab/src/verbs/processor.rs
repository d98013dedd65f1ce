//! `--cpu`, `--emulator` and `--model`, alike for every verb that boots a machine.

use crate::machine::{Emulator, Model, Options, Vendor};
use crate::setup::{self, Tools};
use anyhow::{Result, bail};

/// Which processors, and who emulates them.
#[derive(Debug, clap::Args)]
pub(crate) struct Processor {
    /// Vendor of the processors
    #[arg(long, value_enum, default_value = "intel")]
    cpu: Vendor,
    /// Emulator; by default Bochs 3.0
    #[arg(long, value_enum, default_value = "bochs")]
    emulator: Emulator,
    /// The emulator's processor model
    #[arg(long)]
    model: Option<String>,
}

impl Processor {
    /// The machine of the demonstration with these processors.
    pub(crate) fn options(&self) -> Result<Options> {
        if self.emulator == Emulator::Qemu && self.cpu == Vendor::Intel {
            bail!("QEMU emulates no VT-x: use --cpu amd with --emulator qemu");
        }
        let mut options = Options {
            emulator: self.emulator,
            ..Options::of(Model::of(self.cpu, self.emulator))
        };
        if let Some(model) = &self.model {
            options.model.clone_from(model);
        }
        Ok(options)
    }

    /// Makes the lab ready, with this emulator.
    pub(crate) fn tools(&self) -> Result<Tools> {
        let tools = setup::all()?;
        setup::emulator(self.emulator)?;
        Ok(tools)
    }
}
