//! The situations that are explored.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::atomics::{Ordering, park_waiters};
use crate::revocation::guest::{
    self,
    Instruction::{
        self, Exit, Fetch, Idle, Init, Join, Leave, SelfWrite, SelfWriteAnd, Sipi, Struck, Write,
    },
    Rights::{self, Executable, Writable},
};
use crate::revocation::hypervisor::Hypervisor;
use crate::revocation::percpu::PAGES;

/// A situation: the rights to the pages at first, and each core's program.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, for messages.
    pub name: &'static str,
    rights: [Rights; PAGES],
    programs: &'static [&'static [Instruction]],
    /// Interrupts strike at each access in root mode too, not only where root
    /// mode waits.
    anywhere: bool,
    /// Interrupts take their time.
    late: bool,
    /// Preemptions that are explored.
    preemptions: usize,
}

const fn scenario(
    name: &'static str,
    rights: [Rights; PAGES],
    programs: &'static [&'static [Instruction]],
) -> Scenario {
    Scenario {
        name,
        rights,
        programs,
        anywhere: false,
        late: false,
        preemptions: 2,
    }
}

/// One core writes a page, another runs it.
pub const WRITER_AND_FETCHER: Scenario = scenario(
    "writer and fetcher",
    [Writable, Writable],
    &[&[Fetch(0), Idle], &[Write(0), Write(0), Idle]],
);

/// A core steps over its own page while another wants that page.
pub const STEP_AND_FETCH: Scenario = scenario(
    "step and fetch",
    [Executable, Writable],
    &[&[SelfWrite(0), Idle], &[Fetch(0), Idle]],
);

/// A core steps; its private path has a right that another core takes away.
pub const STEP_AND_REVOKE: Scenario = scenario(
    "step and revoke",
    [Executable, Writable],
    &[&[SelfWriteAnd(0, 1), Idle], &[Fetch(1), Idle]],
);

/// Two cores step over each other's pages.
pub const TWO_STEPS: Scenario = scenario(
    "two steps",
    [Executable, Executable],
    &[&[SelfWriteAnd(0, 1), Idle], &[SelfWriteAnd(1, 0), Idle]],
);

/// A core falls into wait-for-SIPI and wakes while another takes a right away.
pub const SLEEP_AND_WAKE: Scenario = scenario(
    "sleep and wake",
    [Writable, Writable],
    &[&[Fetch(0), Idle], &[Write(0), Init, Sipi, Write(0), Idle]],
);

/// A core sleeps for good.
pub const SLEEP: Scenario = scenario(
    "sleep",
    [Writable, Writable],
    &[&[Fetch(0), Idle], &[Write(0), Init]],
);

/// A core is given back while another takes a right away.
pub const LEAVE: Scenario = scenario(
    "leave",
    [Writable, Writable],
    &[&[Fetch(0), Leave], &[Write(0), Leave]],
);

/// The same, and the kick arrives when it is long answered.
pub const LEAVE_LATE: Scenario = Scenario {
    name: "leave, late",
    late: true,
    ..LEAVE
};

/// INIT strikes a core that steps over its own page, which another core wants.
pub const SLEEP_IN_STEP: Scenario = scenario(
    "sleep in step",
    [Executable, Writable],
    &[&[Fetch(0), Idle], &[Struck(0)]],
);

/// A core becomes a guest while another takes a right away.
pub const JOIN: Scenario = scenario(
    "join",
    [Writable, Writable],
    &[&[Fetch(0), Idle], &[Join, Write(0), Idle]],
);

/// Two revocations in a row: the kicks may merge.
pub const TWO_KICKS: Scenario = scenario(
    "two kicks",
    [Writable, Writable],
    &[&[Fetch(0), Fetch(1), Idle], &[Write(0), Write(1), Idle]],
);

/// Two revocations while a core is in and out of root mode for other reasons;
/// interrupts at every access.
pub const TWO_KICKS_ANYWHERE: Scenario = Scenario {
    anywhere: true,
    ..scenario(
        "two kicks, anywhere",
        [Writable, Writable],
        &[&[Fetch(0), Fetch(1)], &[Exit, Idle]],
    )
};

/// A step, and interrupts at every access.
pub const STEP_ANYWHERE: Scenario = Scenario {
    name: "step and revoke, anywhere",
    anywhere: true,
    preemptions: 1,
    ..STEP_AND_REVOKE
};

/// Three cores: two take rights away, one has them.
pub const THREE_CORES: Scenario = Scenario {
    preemptions: 1,
    ..scenario(
        "three cores",
        [Writable, Writable],
        &[
            &[Fetch(0), Leave],
            &[Write(0), Write(1), Leave],
            &[Fetch(1), Leave],
        ],
    )
};

/// All of them.
pub const ALL: &[&Scenario] = &[
    &WRITER_AND_FETCHER,
    &STEP_AND_FETCH,
    &STEP_AND_REVOKE,
    &TWO_STEPS,
    &SLEEP_AND_WAKE,
    &SLEEP,
    &LEAVE,
    &LEAVE_LATE,
    &SLEEP_IN_STEP,
    &JOIN,
    &TWO_KICKS,
    &TWO_KICKS_ANYWHERE,
    &STEP_ANYWHERE,
    &THREE_CORES,
];

/// Explores a scenario; panics at the first run that goes wrong.
pub fn explore(scenario: &'static Scenario) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 5_000;
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(scenario.preemptions);
    }
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    builder.check(move || {
        counter.fetch_add(1, Relaxed);
        run(scenario);
    });
    let runs = runs.load(Relaxed);
    println!("{}: {runs} runs", scenario.name);
}

fn run(scenario: &'static Scenario) {
    park_waiters(scenario.late || scenario.programs.len() > 2);
    let count = u32::try_from(scenario.programs.len()).expect("a few cores");
    let hypervisor = Rc::new(Hypervisor::new(count, scenario.rights, scenario.late));
    for (core, program) in hypervisor.cores().zip(scenario.programs) {
        core.belong_to(&hypervisor);
        let joins = matches!(program.first(), Some(Join));
        core.state.active.store(!joins, Ordering::Release);
    }
    if scenario.late {
        let hypervisor = hypervisor.clone();
        loom::thread::spawn(move || hypervisor.late.store(false, Ordering::Release));
    }
    let processors: Vec<_> = scenario
        .programs
        .iter()
        .enumerate()
        .skip(1)
        .map(|(number, program)| {
            let hypervisor = hypervisor.clone();
            loom::thread::spawn(move || processor(&hypervisor, number, program, scenario.anywhere))
        })
        .collect();
    processor(&hypervisor, 0, scenario.programs[0], scenario.anywhere);
    for processor in processors {
        processor.join().expect("a processor's thread");
    }
}

fn processor(hypervisor: &Hypervisor, number: usize, program: &[Instruction], anywhere: bool) {
    let core = &hypervisor.cores[number];
    core.hardware.interruptible.set(anywhere);
    guest::run(core, program);
}
