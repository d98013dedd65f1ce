//! Test cases: ordinary functions in a table.
//!
//! A case boots one machine at a time through its [`Stage`] and returns an error
//! when something is not as it must be; the runner adds the machine's state to
//! the report. Each case says on which machines it makes sense; an *instance* is
//! a case on one of them, and its name is `case/model/cpus`.

mod boot;
mod callers;
mod cycles;
mod drivers;
mod exerciser;
mod firmware;
mod hidden;
mod image;
mod json;
mod refusals;
mod root_code;
mod seeded;
mod specimens;
mod stage;
mod state;
mod vendors;

pub(crate) use seeded::page as seeded_page;
pub(crate) use stage::Stage;

use crate::images;
use crate::machine::{Emulator, Model, Options};
use anyhow::Result;

/// Intel's models of the matrix: with mode-based execute control, and without.
pub(crate) const MODELS: [Model; 2] = [Model::TIGERLAKE, Model::HASWELL];
/// AMD's: in Bochs, and in QEMU.
pub(crate) const AMD_MODELS: [Model; 2] = [Model::RYZEN, Model::EPYC];
/// Numbers of processors of the matrix.
pub(crate) const CPUS: [u32; 3] = [1, 2, 4];

/// On which of AMD's models a case runs besides, with the numbers of processors
/// that its [`On`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amd {
    /// On none: it is about VMX, or is still to come.
    No,
    /// In Bochs, which shows what it looks for (`machine/offers.rs`).
    Bochs,
    /// In Bochs and in QEMU.
    Both,
}

impl Amd {
    const fn models(self) -> &'static [Model] {
        match self {
            Self::No => &[],
            Self::Bochs => AMD_MODELS.split_at(1).0,
            Self::Both => &AMD_MODELS,
        }
    }
}

/// On which of AMD's models specimens have their cases.
const SPECIMENS_ON_AMD: Amd = Amd::Bochs;

/// On which machines a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// Every model with every number of processors.
    Matrix,
    /// The same, and with eight.
    EightToo,
    /// Every model, two processors.
    Models,
    /// The first model with each of these numbers of processors.
    Counts(&'static [u32]),
    /// One machine.
    Only(&'static str, u32),
    /// No Intel model; AMD's with this number of processors.
    NoIntel(u32),
    /// One machine of Bochs's with AMD's processors.
    OnlyAmd(&'static str, u32),
}

impl On {
    /// The machines, Intel's first.
    fn machines(self, amd: Amd) -> Vec<(Model, u32)> {
        const EIGHT_TOO: [u32; 4] = [1, 2, 4, 8];
        let one;
        let number;
        let (models, counts): (&[Model], &[u32]) = match self {
            Self::Matrix => (&MODELS, &CPUS),
            Self::EightToo => (&MODELS, &EIGHT_TOO),
            Self::Models => (&MODELS, &[2]),
            Self::Counts(counts) => (&MODELS[..1], counts),
            Self::Only(name, cpus) => {
                one = [Model::intel(name)];
                number = [cpus];
                (&one, &number)
            }
            Self::OnlyAmd(name, cpus) => {
                one = [Model::amd(name)];
                number = [cpus];
                (&one, &number)
            }
            Self::NoIntel(cpus) => {
                number = [cpus];
                (&[], &number)
            }
        };
        models
            .iter()
            .chain(amd.models())
            .flat_map(|&model| counts.iter().map(move |&cpus| (model, cpus)))
            .collect()
    }
}

/// A case of the table.
struct Case {
    name: &'static str,
    about: &'static str,
    on: On,
    amd: Amd,
    /// Left out unless `--long` is given.
    long: bool,
    run: fn(&mut Stage<'_>) -> Result<()>,
}

/// Specimens have one case each, made from the folder.
const TABLE: &[Case] = &[
    Case {
        name: "driver-file",
        about: "hvdetect_driver.sys is an image that Windows would load",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: image::driver_file,
    },
    Case {
        name: "root-mode-code",
        about: "root mode's machine code: no import, panic, allocator, vector register; its stack",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: root_code::keeps_its_rules,
    },
    Case {
        name: "boot",
        about: "MiniNT boots, has all its processors, and shuts down cleanly",
        on: On::Matrix,
        amd: Amd::Both,
        long: false,
        run: boot::boots_and_shuts_down,
    },
    Case {
        name: "large-memory",
        about: "8 GiB of RAM with the hole below 4 GiB: monitored, and the witness agrees",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: boot::large_memory,
    },
    Case {
        name: "eight-processors",
        about: "eight processors are taken over and given back",
        on: On::Only("tigerlake", 8),
        amd: Amd::No,
        long: false,
        run: cycles::start_and_stop,
    },
    Case {
        name: "other-models",
        about: "sapphire_rapids is taken over and given back",
        on: On::Only("sapphire_rapids", 2),
        amd: Amd::No,
        long: false,
        run: cycles::start_and_stop,
    },
    Case {
        name: "broadwell",
        about: "broadwell_ult is taken over and given back",
        on: On::Only("broadwell_ult", 2),
        amd: Amd::No,
        long: false,
        run: cycles::start_and_stop,
    },
    Case {
        name: "trinity",
        about: "every attack is found on trinity_apu",
        on: On::OnlyAmd("trinity_apu", 2),
        amd: Amd::No,
        long: false,
        run: specimens::every_attack,
    },
    Case {
        name: "phenom",
        about: "every attack is found on the oldest AMD processor with nested paging",
        on: On::OnlyAmd("phenom_8650_toliman", 2),
        amd: Amd::No,
        long: false,
        run: specimens::on_an_old_processor,
    },
    Case {
        name: "hang",
        about: "a machine that hangs is ended in time, with registers and serial lines",
        on: On::Only("tigerlake", 2),
        amd: Amd::Both,
        long: false,
        run: boot::a_hang_is_reported,
    },
    Case {
        name: "svm-firmware",
        about: "the firmware leaves VM_CR and EFER.SVME on every processor as it was told",
        on: On::NoIntel(2),
        amd: Amd::Bochs,
        long: false,
        run: firmware::svm_switches,
    },
    Case {
        name: "specimens-bare",
        about: "every specimen loads, does what it does and unloads without the hypervisor",
        on: On::NoIntel(4),
        amd: Amd::Both,
        long: false,
        run: specimens::on_the_bare_machine,
    },
    Case {
        name: "programs-bare",
        about: "ring-3 programs run without the hypervisor",
        on: On::NoIntel(4),
        amd: Amd::Both,
        long: false,
        run: boot::runs_programs,
    },
    Case {
        name: "wdm-driver-in-c",
        about: "a third party's WDM driver, built with mingw-w64, loads, works and unloads",
        on: On::Models,
        amd: Amd::Both,
        long: false,
        run: drivers::in_c,
    },
    Case {
        name: "wdm-driver-monitored",
        about: "the same below the hypervisor, with nothing found",
        on: On::Models,
        amd: Amd::Both,
        long: false,
        run: drivers::in_c_monitored,
    },
    Case {
        name: "unresolved-import",
        about: "a driver with an unresolved import is refused by a sentence that names it",
        on: On::Only("tigerlake", 1),
        amd: Amd::Both,
        long: false,
        run: drivers::unresolved_import,
    },
    Case {
        name: "start-stop",
        about: "monitoring starts and stops; the witness looks between",
        on: On::Matrix,
        amd: Amd::Both,
        long: false,
        run: cycles::start_and_stop,
    },
    Case {
        name: "cycles-under-load",
        about: "50 start/stop cycles while programs and drivers run; registers as before",
        on: On::Matrix,
        amd: Amd::Bochs,
        long: false,
        run: cycles::fifty_under_load,
    },
    Case {
        name: "same-registers",
        about: "every register is as before, below the hypervisor and after it",
        on: On::Matrix,
        amd: Amd::Both,
        long: false,
        run: state::is_the_same_before_below_and_after,
    },
    Case {
        name: "guest-nmis",
        about: "the guest's own NMIs are neither lost nor invented",
        on: On::Matrix,
        amd: Amd::Bochs,
        long: false,
        run: state::nmis_are_neither_lost_nor_invented,
    },
    Case {
        name: "instructions",
        about: "single instructions do what they do on the bare processor",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::peers,
    },
    Case {
        name: "msr-sweep",
        about: "every MSR, read and written, is as on the bare processor but for the allow-list",
        on: On::Models,
        amd: Amd::Both,
        long: false,
        run: exerciser::msrs,
    },
    Case {
        name: "cpuid-sweep",
        about: "every CPUID leaf is as on the bare processor but for the allow-list",
        on: On::Models,
        amd: Amd::Both,
        long: false,
        run: exerciser::cpuid,
    },
    Case {
        name: "control-register-sweep",
        about: "bits of CR0 and CR4 and patterns of XCR0 do what they do on the bare processor",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::control_registers,
    },
    Case {
        name: "event-delivery",
        about: "events through IDT, GDT, TSS, stacks and handlers that fault: once each, same frame",
        on: On::Matrix,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::delivery,
    },
    Case {
        name: "nmi-flood",
        about: "10,000 NMIs at random moments on four busy processors: each seen once",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: false,
        run: exerciser::nmi_flood,
    },
    Case {
        name: "million-nmis",
        about: "1,000,000 NMIs at random moments on four busy processors: each seen once",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: true,
        run: exerciser::long_nmi_flood,
    },
    Case {
        name: "register-patterns",
        about: "vector, x87 and debug registers and segment bases survive 10,000 exits",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::registers_survive,
    },
    Case {
        name: "register-patterns-million",
        about: "vector, x87 and debug registers and segment bases survive 1,000,000 exits",
        on: On::Models,
        amd: Amd::Bochs,
        long: true,
        run: exerciser::registers_survive_a_million,
    },
    Case {
        name: "system-registers",
        about: "FS, GS, TR, LDTR and the system-call registers survive 10,000 rounds of exits",
        on: On::Models,
        amd: Amd::Both,
        long: false,
        run: exerciser::system_registers_survive,
    },
    Case {
        name: "system-registers-million",
        about: "FS, GS, TR, LDTR and the system-call registers survive 1,000,000 rounds of exits",
        on: On::Models,
        amd: Amd::Both,
        long: true,
        run: exerciser::system_registers_survive_a_million,
    },
    Case {
        name: "svm-instructions",
        about: "SVM's instructions, registers and EFER.SVME are as on the bare processor",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::svm,
    },
    Case {
        name: "svm-bare",
        about: "without the hypervisor SVM's instructions are undefined, EFER.SVME can be set",
        on: On::NoIntel(2),
        amd: Amd::Both,
        long: false,
        run: exerciser::svm_on_the_bare_machine,
    },
    Case {
        name: "processor-restart",
        about: "INIT and startup IPIs restart processors below the hypervisor",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::restarts,
    },
    Case {
        name: "triple-fault",
        about: "a triple fault of the guest ends the machine as without the hypervisor",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: exerciser::triple_fault,
    },
    Case {
        name: "packaged-bochs",
        about: "Bochs 2.7 as Debian packages it: an attack is found there too",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: true,
        run: boot::packaged_bochs,
    },
    Case {
        name: "interleavings",
        about: "start, attack and stop with every second quantum from 1 to 31",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: false,
        run: cycles::interleavings,
    },
    Case {
        name: "thousand-cycles",
        about: "1,000 start/stop cycles under load; registers as before",
        on: On::Counts(&[1, 2, 4, 8]),
        amd: Amd::Bochs,
        long: true,
        run: cycles::thousand_under_load,
    },
    Case {
        name: "no-mtf",
        about: "the fallback step, on a processor that pretends to have no MTF",
        on: On::Models,
        amd: Amd::No,
        long: false,
        run: specimens::without_mtf,
    },
    Case {
        name: "no-svm-options",
        about: "without NRIP save and flush by ASID, alone and together: the same findings",
        on: On::NoIntel(2),
        amd: Amd::Bochs,
        long: false,
        run: specimens::without_options,
    },
    Case {
        name: "vendors-agree",
        about: "each specimen's findings on Intel and on AMD are equal field by field",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: vendors::agree,
    },
    Case {
        name: "rwx-bounded",
        about: "a driver with a read-write-execute section runs at a bounded cost",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: specimens::mixed_section_is_bounded,
    },
    Case {
        name: "driver-storm",
        about: "75 drivers come and go below the hypervisor, and nothing is found",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: specimens::driver_storm,
    },
    Case {
        name: "no-mtf-forms",
        about: "every form of self-writing instruction, stepped without MTF",
        on: On::Models,
        amd: Amd::No,
        long: false,
        run: specimens::all_forms_without_mtf,
    },
    Case {
        name: "jit-silent",
        about: "ring-3 programs, one of which rewrites its own code, cause no finding",
        on: On::Models,
        amd: Amd::Bochs,
        long: false,
        run: specimens::programs_are_silent,
    },
    Case {
        name: "locked-off",
        about: "VT-x locked off by the firmware: refused, nothing changed",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: refusals::locked_off,
    },
    Case {
        name: "locked-off-on-one",
        about: "VT-x not enabled on the second processor only: refused, all given back",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: refusals::not_on_second_processor,
    },
    Case {
        name: "vmx-in-use",
        about: "CR4.VMXE is set by somebody else: refused",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: refusals::vmx_in_use,
    },
    Case {
        name: "odd-firmware",
        about: "IA32_FEATURE_CONTROL unlocked or never written; unusual and overlapping MTRRs",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: refusals::odd_firmware,
    },
    Case {
        name: "hypervisor-present",
        about: "a hypervisor below us: refused",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: refusals::hypervisor_present,
    },
    Case {
        name: "no-ept",
        about: "a processor with VT-x but without EPT: refused",
        on: On::Only("core2_penryn_t9600", 2),
        amd: Amd::No,
        long: false,
        run: refusals::no_ept,
    },
    Case {
        name: "no-vmx",
        about: "a processor without VT-x: refused",
        on: On::Only("p4_prescott_celeron_336", 1),
        amd: Amd::No,
        long: false,
        run: refusals::no_vmx,
    },
    Case {
        name: "svm-refused",
        about: "SVM off, in use, below a hypervisor, without nested paging or ASIDs: each refused",
        on: On::NoIntel(2),
        amd: Amd::Bochs,
        long: false,
        run: refusals::without_svm,
    },
    Case {
        name: "turion",
        about: "AMD-V without nested paging: refused",
        on: On::OnlyAmd("turion64_tyler", 2),
        amd: Amd::No,
        long: false,
        run: refusals::no_ept,
    },
    Case {
        name: "twice",
        about: "start while started and stop while stopped are refused, state unchanged",
        on: On::Only("tigerlake", 2),
        amd: Amd::Both,
        long: false,
        run: refusals::start_and_stop_twice,
    },
    Case {
        name: "two-callers",
        about: "two callers start and stop at once: one does it, the other is told so",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: false,
        run: callers::two_at_once,
    },
    Case {
        name: "killed-callers",
        about: "callers of start and stop and readers are killed at any moment",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: callers::killed,
    },
    Case {
        name: "handed-over",
        about: "requests are presented in whatever thread completes another one",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: callers::handed_over,
    },
    Case {
        name: "nobody-reads",
        about: "findings that nobody reads: drops are counted, the guest goes on",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: callers::never_reads,
    },
    Case {
        name: "vectors-survive",
        about: "XMM0 to XMM15 and MXCSR are the same after a million exits",
        on: On::Only("tigerlake", 1),
        amd: Amd::Bochs,
        long: false,
        run: state::vectors_survive,
    },
    Case {
        name: "memory-types-follow",
        about: "a range register written while monitored reaches the nested tables",
        on: On::Only("tigerlake", 2),
        amd: Amd::No,
        long: false,
        run: state::memory_types_follow,
    },
    Case {
        name: "cpuid-follows-cr4",
        about: "CPUID shows OSXSAVE as the guest's own CR4 has it",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: state::cpuid_follows_cr4,
    },
    Case {
        name: "steps-end",
        about: "after a page that wrote itself nothing is stepped any more",
        on: On::Only("tigerlake", 1),
        amd: Amd::Both,
        long: false,
        run: state::steps_end,
    },
    Case {
        name: "vmx-is-hidden",
        about: "below the hypervisor no register and no CPUID leaf shows VMX",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: hidden::vmx_is_hidden,
    },
    Case {
        name: "json-of-hvdetect",
        about: "watch and status print every promised field, of its type",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: json::of_the_command,
    },
    Case {
        name: "json-of-the-lab",
        about: "so do `cargo lab run` and `bench`; pure compute is free, a warm pass flips nothing",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: json::of_the_lab,
    },
    Case {
        name: "no-driver",
        about: "the command without a driver exits 4 and says what to do",
        on: On::Only("tigerlake", 1),
        amd: Amd::No,
        long: false,
        run: refusals::no_driver,
    },
    Case {
        name: "bad-ioctls",
        about: "unknown, short and oversized requests are refused by their own status",
        on: On::Only("tigerlake", 2),
        amd: Amd::Both,
        long: false,
        run: refusals::bad_requests,
    },
];

/// Cases that need the test build of the driver.
const SEEDED: &[Case] = &[
    Case {
        name: "launch-failures",
        about: "each step of the launch fails on each core: refused, all as before",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: false,
        run: seeded::launch_failures,
    },
    Case {
        name: "allocation-failures",
        about: "each allocation of the start fails: refused, all as before",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: seeded::allocation_failures,
    },
    Case {
        name: "cannot-leave",
        about: "a core that cannot be given back: said, nothing freed, the driver stays",
        on: On::Only("tigerlake", 2),
        amd: Amd::Bochs,
        long: false,
        run: seeded::cannot_leave,
    },
    Case {
        name: "slow-core",
        about: "a core that answers late delays, and does no harm",
        on: On::Only("tigerlake", 4),
        amd: Amd::Bochs,
        long: false,
        run: seeded::slow_core,
    },
];

/// A case on one machine.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// `case/model/cpus`.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) about: String,
    /// Left out unless asked for.
    pub(crate) long: bool,
    model: Model,
    cpus: u32,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Function(fn(&mut Stage<'_>) -> Result<()>),
    Specimen(String),
    /// With a mistake planted, by which it must fail.
    Planted(&'static seeded::Fault, Box<What>),
    /// With the test build of the driver.
    Seeded(fn(&mut Stage<'_>) -> Result<()>),
}

impl What {
    fn run(&self, stage: &mut Stage<'_>) -> Result<()> {
        match self {
            Self::Function(run) | Self::Seeded(run) => run(stage),
            Self::Specimen(name) => specimens::found_as_expected(stage, name),
            Self::Planted(fault, case) => seeded::must_fail(stage, fault, |stage| case.run(stage)),
        }
    }
}

impl Instance {
    /// The machine that it runs on.
    pub(crate) fn options(&self) -> Options {
        Options {
            cpus: self.cpus,
            ..Options::of(self.model)
        }
    }

    /// What it needs installed.
    pub(crate) const fn emulator(&self) -> Emulator {
        self.model.emulator
    }

    /// Runs it.
    pub(crate) fn run(&self, stage: &mut Stage<'_>) -> Result<()> {
        self.what.run(stage)
    }

    /// Whether it needs the test build of the driver.
    pub(crate) const fn seeded(&self) -> bool {
        matches!(self.what, What::Planted(..) | What::Seeded(_))
    }
}

/// Every instance, in the order in which they run.
pub(crate) fn instances() -> Result<Vec<Instance>> {
    let mut all = Vec::new();
    let mut add = |name: &str, about: &str, long: bool, machines: Vec<(Model, u32)>, what: What| {
        for (model, cpus) in machines {
            all.push(Instance {
                name: format!("{name}/{}/{cpus}", model.name),
                about: about.to_owned(),
                long,
                model,
                cpus,
                what: what.clone(),
            });
        }
    };
    for case in TABLE {
        add(
            case.name,
            case.about,
            case.long,
            case.on.machines(case.amd),
            What::Function(case.run),
        );
    }
    for name in images::specimen_names()? {
        let about = specimens::about(&name)?;
        let mut machines = Vec::new();
        for (model, cpus) in On::EightToo.machines(SPECIMENS_ON_AMD) {
            if specimens::suits(&name, model.vendor, model.emulator)? {
                machines.push((model, cpus));
            }
        }
        add(&name, &about, false, machines, What::Specimen(name.clone()));
    }
    for case in SEEDED {
        add(
            case.name,
            case.about,
            case.long,
            case.on.machines(case.amd),
            What::Seeded(case.run),
        );
    }
    for fault in seeded::FAULTS {
        let what = TABLE
            .iter()
            .chain(SEEDED)
            .find(|case| case.name == fault.case)
            .map_or_else(
                || What::Specimen(fault.case.to_owned()),
                |case| What::Function(case.run),
            );
        add(
            &format!("seeded/{}", fault.name),
            &format!("{} fails with this mistake planted", fault.case),
            true,
            fault.on.machines(Amd::No),
            What::Planted(fault, Box::new(what)),
        );
    }
    Ok(all)
}
