//! What kind of machine to boot: plain values, chosen on the command line or by
//! a case, turned into an emulator's configuration elsewhere.

use clap::ValueEnum;
use serde::Deserialize;
use std::time::Duration;

/// Whose virtualization extensions the processors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Vendor {
    /// VMX and EPT.
    Intel,
    /// SVM and NPT.
    Amd,
}

/// Which program emulates the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Emulator {
    /// Our build of Bochs 3.0, with instrumentation.
    Bochs,
    /// Debian 12's Bochs 2.7, for a smoke test only.
    Bochs2,
    /// QEMU's TCG, AMD only.
    Qemu,
}

impl Emulator {
    /// The name used on the command line and in figures.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bochs => "bochs",
            Self::Bochs2 => "bochs2",
            Self::Qemu => "qemu",
        }
    }
}

impl Vendor {
    /// The name used on the command line and in figures.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Intel => "intel",
            Self::Amd => "amd",
        }
    }
}

/// A machine to be.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Vendor of the processors.
    pub(crate) vendor: Vendor,
    /// Emulator.
    pub(crate) emulator: Emulator,
    /// The emulator's name of the processor model.
    pub(crate) model: String,
    /// Number of processors.
    pub(crate) cpus: u32,
    /// Guest RAM in MiB.
    pub(crate) ram: u32,
    /// Longest run of instructions of one processor, 1 to 32 (Bochs).
    pub(crate) quantum: u32,
    /// The machine is ended after this time, whatever it does.
    pub(crate) time_limit: Duration,
    /// Count retired guest instructions by physical frame (our Bochs; slower).
    pub(crate) count_frames: bool,
    /// The time-stamp counter counts instructions (QEMU; one processor).
    pub(crate) icount: bool,
    /// What CPUID answers differently from the model (our Bochs).
    pub(crate) cpuid: Vec<CpuidChange>,
}

/// A changed answer of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuidChange {
    /// EAX before the instruction; every subfunction.
    pub(crate) function: u32,
    /// Which register of the answer: 0 for EAX to 3 for EDX.
    pub(crate) register: u32,
    /// Bits that stay as they are.
    pub(crate) keep: u32,
    /// Bits that are set.
    pub(crate) set: u32,
}

impl CpuidChange {
    /// These bits are set.
    pub(crate) const fn set(function: u32, register: u32, bits: u32) -> Self {
        Self {
            function,
            register,
            keep: u32::MAX,
            set: bits,
        }
    }

    /// These bits are clear.
    pub(crate) const fn clear(function: u32, register: u32, bits: u32) -> Self {
        Self {
            function,
            register,
            keep: !bits,
            set: 0,
        }
    }
}

/// A processor model together with the emulator that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// Its name in cases and figures.
    pub(crate) name: &'static str,
    /// Vendor of the processors.
    pub(crate) vendor: Vendor,
    /// Emulator.
    pub(crate) emulator: Emulator,
    /// The emulator's own name of it.
    pub(crate) processor: &'static str,
}

impl Model {
    /// A model of our Bochs, under Bochs's own name.
    const fn bochs(vendor: Vendor, name: &'static str) -> Self {
        Self {
            name,
            vendor,
            emulator: Emulator::Bochs,
            processor: name,
        }
    }

    /// VMX with all that is used of it.
    pub(crate) const TIGERLAKE: Self = Self::bochs(Vendor::Intel, "tigerlake");
    /// VMX without mode-based execute control.
    pub(crate) const HASWELL: Self = Self::bochs(Vendor::Intel, "corei7_haswell_4770");
    /// SVM in Bochs: one thread, repeatable, seen from outside.
    pub(crate) const RYZEN: Self = Self::bochs(Vendor::Amd, "ryzen");
    /// SVM in QEMU: one thread a processor.
    pub(crate) const EPYC: Self = Self {
        name: "epyc",
        vendor: Vendor::Amd,
        emulator: Emulator::Qemu,
        processor: "EPYC",
    };

    /// Another of Bochs's Intel models.
    pub(crate) const fn intel(name: &'static str) -> Self {
        Self::bochs(Vendor::Intel, name)
    }

    /// Another of Bochs's AMD models.
    pub(crate) const fn amd(name: &'static str) -> Self {
        Self::bochs(Vendor::Amd, name)
    }

    /// The model that stands for a vendor on an emulator.
    pub(crate) const fn of(vendor: Vendor, emulator: Emulator) -> Self {
        match (vendor, emulator) {
            (_, Emulator::Qemu) => Self::EPYC,
            (Vendor::Intel, _) => Self::TIGERLAKE,
            (Vendor::Amd, _) => Self::RYZEN,
        }
    }
}

impl Options {
    /// The machine of the demonstration: four processors of this model, 256 MiB.
    pub(crate) fn of(model: Model) -> Self {
        Self {
            vendor: model.vendor,
            emulator: model.emulator,
            model: model.processor.to_owned(),
            cpus: 4,
            ram: 256,
            quantum: 16,
            time_limit: Duration::from_mins(2),
            count_frames: false,
            icount: false,
            cpuid: Vec::new(),
        }
    }

    /// The same with Intel processors.
    #[cfg(test)]
    pub(crate) fn intel() -> Self {
        Self::of(Model::TIGERLAKE)
    }
}
