//! Planted mistakes (`hv_core::seeded`): each must make a case of the table fail,
//! for the reason that the list here states.
//!
//! The machine runs the driver of a test build; its start carries the number of
//! the mistake. A case that passes all the same has no teeth, and one that fails
//! for another reason shows something else: both fail here.

use super::{On, Stage, state};
use anyhow::{Context, Result, bail, ensure};
use detector::wire::StartReply;
use hv_core::seeded::{ALL, Planted};
use std::fmt::Write as _;

/// A mistake and what catches it.
#[derive(Debug)]
pub(super) struct Fault {
    /// Its name in `hv_core::seeded`.
    pub(super) name: &'static str,
    /// The case or specimen.
    pub(super) case: &'static str,
    /// The smallest machine that shows it.
    pub(super) on: On,
    /// Part of what the case says when it fails.
    pub(super) says: &'static str,
}

const fn fault(name: &'static str, case: &'static str, cpus: u32, says: &'static str) -> Fault {
    Fault {
        name,
        case,
        on: On::Only("tigerlake", cpus),
        says,
    }
}

const fn without_mbec(
    name: &'static str,
    case: &'static str,
    cpus: u32,
    says: &'static str,
) -> Fault {
    Fault {
        on: On::Only("corei7_haswell_4770", cpus),
        ..fault(name, case, cpus, says)
    }
}

const fn on_amd(name: &'static str, case: &'static str, cpus: u32, says: &'static str) -> Fault {
    Fault {
        on: On::OnlyAmd("ryzen", cpus),
        ..fault(name, case, cpus, says)
    }
}

/// The list.
pub(super) const FAULTS: &[Fault] = &[
    fault("DropReinjection", "event-delivery", 1, "deliver 2 differs"),
    fault("DropErrorCode", "event-delivery", 1, "deliver 2 differs"),
    fault("ForgetResumeFlag", "event-delivery", 1, "deliver 2 differs"),
    fault("ForgetSingleStep", "event-delivery", 1, "deliver 2 differs"),
    fault(
        "ForgetIretBlocking",
        "event-delivery",
        1,
        "deliver 2 differs",
    ),
    fault("KeepStiBlocking", "event-delivery", 1, "deliver 2 differs"),
    fault("IgnoreInit", "processor-restart", 2, "did not come back"),
    fault(
        "SipiOffByOne",
        "processor-restart",
        2,
        "no reply from the machine",
    ),
    fault("HalfRollback", "launch-failures", 2, "still virtualized"),
    fault("OpenHypercalls", "instructions", 1, "peers differs"),
    fault("LoseGuestNmi", "guest-nmis", 1, "NMIs sent and seen"),
    fault("InventNmi", "guest-nmis", 1, "NMIs sent and seen"),
    fault("PassKick", "guest-nmis", 2, "while pages change: NMIs"),
    fault(
        "AdvanceByTwo",
        "control-register-sweep",
        1,
        "no reply from the machine",
    ),
    fault("SwallowGp", "msr-sweep", 1, "msrs 0x40000000"),
    fault(
        "ClobberOnGp",
        "vmx-is-hidden",
        1,
        "RDMSR that faults changes registers",
    ),
    fault("ShowVmx", "vmx-is-hidden", 1, "CPUID"),
    fault("FrozenOsxsave", "cpuid-follows-cr4", 1, "OSXSAVE below"),
    fault("SkipXsetbv", "control-register-sweep", 1, "xcr"),
    fault(
        "ForgetXmm3",
        "vectors-survive",
        1,
        "vector registers have changed",
    ),
    fault(
        "ForgetMxcsr",
        "vectors-survive",
        1,
        "vector registers have changed",
    ),
    fault("StaleTypes", "memory-types-follow", 2, "the witness"),
    fault("LimitFfff", "same-registers", 1, "gdt"),
    fault("ForgetDr7", "same-registers", 1, "dr7"),
    fault("KeepVmxe", "same-registers", 1, "cr4"),
    fault("ForgetGsBase", "start-stop", 1, "the machine is gone"),
    fault("KeepWrite", "pool-shellcode", 1, "the witness"),
    fault("LeaveFrameMapped", "start-stop", 1, "the witness"),
    fault("NeverStep", "self-writer", 1, "0 times self-modifying-page"),
    fault(
        "SkipCompare",
        "self-writer-forms",
        1,
        "events of self-modifying-page",
    ),
    fault("StepForEver", "steps-end", 1, "steps go on"),
    fault("NeverAdvance", "msr-sweep", 1, "no reply from the machine"),
    fault("WrongTypes", "start-stop", 1, "the witness"),
    fault(
        "LeakBlock",
        "start-stop",
        1,
        "no reply from the machine to Service",
    ),
    fault("NeverFill", "start-stop", 1, "no reply from the machine"),
    fault("FaultOnNe", "control-register-sweep", 1, "cr0"),
    fault("ShowVmxe", "vmx-is-hidden", 1, "no reply from the machine"),
    fault("ShowFeatureControl", "vmx-is-hidden", 1, "FEATURE_CONTROL"),
    fault("AllowVmxe", "vmx-is-hidden", 1, "no reply from the machine"),
    fault("SkipVmxInstructions", "instructions", 1, "peers differs"),
    fault(
        "SkipDecision",
        "pool-shellcode",
        1,
        "0 times unbacked-execution",
    ),
    without_mbec("JudgeUser", "jit-silent", 2, "benign programs caused"),
    fault(
        "SkipKick",
        "cross-core-writer",
        2,
        "times unbacked-execution",
    ),
    on_amd("DropReinjection", "event-delivery", 1, "deliver 2 differs"),
    on_amd(
        "DropErrorCode",
        "event-delivery",
        1,
        "no reply from the machine",
    ),
    on_amd("ForgetResumeFlag", "event-delivery", 1, "deliver 2 differs"),
    on_amd("ForgetSingleStep", "event-delivery", 1, "deliver 2 differs"),
    on_amd("KeepStiBlocking", "event-delivery", 1, "deliver 2 differs"),
    on_amd("IgnoreInit", "processor-restart", 2, "did not come back"),
    on_amd("HalfRollback", "launch-failures", 2, "still virtualized"),
    on_amd("OpenHypercalls", "instructions", 1, "peers differs"),
    on_amd("LoseGuestNmi", "guest-nmis", 1, "NMIs sent and seen"),
    on_amd("InventNmi", "guest-nmis", 1, "NMIs sent and seen"),
    on_amd("AdvanceByTwo", "msr-sweep", 1, "no reply from the machine"),
    on_amd("SwallowGp", "msr-sweep", 1, "msrs 0x40000000"),
    on_amd("ClobberOnGp", "msr-sweep", 1, "scattered"),
    on_amd("AllowVmxe", "svm-probe", 1, "EFER.SVME set 0"),
    on_amd("SkipVmxInstructions", "instructions", 1, "peers differs"),
    on_amd(
        "ForgetXmm3",
        "vectors-survive",
        1,
        "vector registers have changed",
    ),
    on_amd(
        "ForgetMxcsr",
        "vectors-survive",
        1,
        "vector registers have changed",
    ),
    on_amd("LimitFfff", "same-registers", 1, "gdt"),
    on_amd("ForgetDr7", "same-registers", 1, "dr7"),
    on_amd("KeepVmxe", "same-registers", 1, "efer"),
    on_amd("ForgetGsBase", "start-stop", 1, "the machine is gone"),
    on_amd("KeepWrite", "pool-shellcode", 1, "the witness"),
    on_amd("LeaveFrameMapped", "start-stop", 1, "the witness"),
    on_amd("NeverStep", "self-writer", 1, "0 times self-modifying-page"),
    on_amd(
        "SkipCompare",
        "self-writer-forms",
        1,
        "events of self-modifying-page",
    ),
    on_amd("NeverFill", "start-stop", 1, "no reply from the machine"),
    on_amd(
        "SkipDecision",
        "pool-shellcode",
        1,
        "0 times unbacked-execution",
    ),
    on_amd(
        "SkipKick",
        "cross-core-writer",
        2,
        "times unbacked-execution",
    ),
];

/// Failures that are planted, not mistakes: a case of their own shows that each
/// is survived.
pub(super) const SURVIVED: [(&str, &str); 4] = [
    ("CannotLeave", "cannot-leave"),
    ("LaunchStep", "launch-failures"),
    ("Allocation", "allocation-failures"),
    ("SlowCore", "slow-core"),
];

/// Mistakes that no emulator can show, because a kicked core answers before it runs
/// on there: the test of `tests/models`, on the same source, and what it says.
pub(super) const MODELLED: [(&str, &str, &str); 1] = [(
    "SkipAcknowledge",
    "acknowledgement_skipped",
    "Causality violation",
)];

/// The number of a mistake.
pub(super) fn number(name: &str) -> Result<u32> {
    ALL.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| u32::from(*number))
        .with_context(|| format!("hv_core::seeded has no {name}"))
}

/// Runs a case with a mistake planted at each start.
pub(super) fn must_fail(
    stage: &mut Stage<'_>,
    fault: &Fault,
    case: impl FnOnce(&mut Stage<'_>) -> Result<()>,
) -> Result<()> {
    stage.planted = Some(number(fault.name)?);
    let Err(error) = case(stage) else {
        bail!("{} goes unnoticed by {}", fault.name, fault.case);
    };
    let text = format!("{error:#}\n{}", stage.report().unwrap_or_default());
    ensure!(
        text.contains(fault.says),
        "{} failed {}, but not with \"{}\":\n{error:#}",
        fault.name,
        fault.case,
        fault.says
    );
    let first = format!("{error:#}");
    println!(
        "       {}: {}",
        fault.name,
        first.lines().next().unwrap_or_default()
    );
    // Nothing that follows is part of this case.
    stage.abandon();
    Ok(())
}

/// A start that must be refused and change nothing.
fn refused(
    stage: &Stage<'_>,
    planted: u32,
    before: &serde_json::Value,
) -> Result<Option<StartReply>> {
    let reply = stage.start_planted(planted, &[])?;
    if reply.error == 0 {
        return Ok(None);
    }
    stage.witness_nothing()?;
    let changed = state::differences(before, &state::state(stage)?);
    ensure!(changed.is_empty(), "not as before: {}", changed.join("; "));
    Ok(Some(reply))
}

/// Steps that are refused with the same error: an instruction failed, the entry
/// failed, the core could not be reached.
const fn kind(step: u32) -> u32 {
    match step {
        2 | 3 => 1,
        5 => 2,
        _ => 0,
    }
}

/// Every step of the launch fails on every core.
pub(super) fn launch_failures(stage: &mut Stage<'_>) -> Result<()> {
    drop(stage.boot_with_driver()?);
    let before = state::state(stage)?;
    // With `HalfRollback` the launch fails, too, and then goes wrong.
    let fault = stage.planted.unwrap_or(Planted::LaunchStep as u32);
    let mut errors = Vec::new();
    for core in 0..stage.options.cpus {
        for step in 0..=5 {
            let planted = fault | step << 8 | core << 16;
            let one = || -> Result<StartReply> {
                let reply = refused(stage, planted, &before)?.context("started all the same")?;
                ensure!(reply.core == core, "blames core {}", reply.core);
                Ok(reply)
            };
            let reply = one().with_context(|| format!("step {step} on core {core}"))?;
            errors.push((step, reply.error));
        }
    }
    for (step, error) in &errors {
        for (other, with) in &errors {
            ensure!(
                (kind(*step) == kind(*other)) == (error == with),
                "step {step} is refused with error {error}, step {other} with {with}"
            );
        }
    }
    ends_well(stage)
}

/// Every allocation of the start fails.
pub(super) fn allocation_failures(stage: &mut Stage<'_>) -> Result<()> {
    const MOST: u32 = 2_000;
    drop(stage.boot_with_driver()?);
    let before = state::state(stage)?;
    for number in 0..MOST {
        let planted = Planted::Allocation as u32 | number << 8;
        let one = refused(stage, planted, &before);
        if one
            .with_context(|| format!("allocation {number}"))?
            .is_none()
        {
            ensure!(number > 2, "only {number} allocations");
            println!("       {number} allocations failed, one after the other");
            stage.must(&["stop"])?;
            return ends_well(stage);
        }
    }
    bail!("{MOST} allocations and no start")
}

/// A core that answers late: everything takes longer, nothing goes wrong.
pub(super) fn slow_core(stage: &mut Stage<'_>) -> Result<()> {
    stage.planted = Some(Planted::SlowCore as u32);
    super::specimens::found_as_expected(stage, "pool-shellcode")?;
    state::nmis_are_neither_lost_nor_invented(stage)
}

/// A core that cannot be given back: the driver says so, and stays.
pub(super) fn cannot_leave(stage: &mut Stage<'_>) -> Result<()> {
    stage.planted = Some(Planted::CannotLeave as u32);
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    stage.must_fail(&["stop"], 1, "could not be given back")?;
    let status = stage.status()?;
    ensure!(status["state"] == "failed", "status: {status}");
    stage.must_fail(&["stop"], 1, "could not be given back")?;
    ensure!(
        stage.start_planted(0, &[])?.error != 0,
        "a start after that succeeds"
    );
    ensure!(
        client.stop_service("hvdetect").is_err(),
        "the driver lets itself be unloaded"
    );
    stage.abandon();
    Ok(())
}

/// A start without a mistake works, and nothing is left.
fn ends_well(stage: &mut Stage<'_>) -> Result<()> {
    stage.planted = Some(0);
    stage.must(&["start"])?;
    stage.witness()?;
    stage.must(&["stop"])?;
    stage.end()
}

/// `docs/src/seeded-faults.md`.
pub(crate) fn page() -> Result<String> {
    let source = std::fs::read_to_string(crate::place::workspace().join("hv-core/src/seeded.rs"))?;
    let mut page = String::from(
        "# Planted mistakes\n\n\
         A test build of the driver (feature `seeded-faults`) can be told to make one of these\n\
         mistakes. `cargo lab test seeded` plants each and requires the case beside it to fail, and to\n\
         say why. The page is printed by `cargo lab list --seeded`.\n\n\
         | mistake | what is wrong | caught by | on | which says |\n|---|---|---|---|---|\n",
    );
    for (name, _) in ALL {
        let about = about(&source, name).with_context(|| format!("no text about {name}"))?;
        if let Some((_, case)) = SURVIVED.iter().find(|(known, _)| known == name) {
            writeln!(
                page,
                "| `{name}` | {about} | survived: `{case}` | tigerlake, 4 | |"
            )?;
            continue;
        }
        if let Some((_, test, says)) = MODELLED.iter().find(|(known, ..)| known == name) {
            writeln!(page, "| `{name}` | {about} | `{test}` | models | {says} |")?;
            continue;
        }
        for fault in FAULTS.iter().filter(|fault| fault.name == *name) {
            let (On::Only(model, cpus) | On::OnlyAmd(model, cpus)) = fault.on else {
                bail!("{name} is for one machine");
            };
            writeln!(
                page,
                "| `{name}` | {about} | `{}` | {model}, {cpus} | {} |",
                fault.case, fault.says
            )?;
        }
    }
    Ok(page)
}

/// The documentation comment above a mistake's name.
fn about(source: &str, name: &str) -> Option<String> {
    let start = format!("{name} = ");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with(&start))?;
    let mut text: Vec<&str> = lines[..at]
        .iter()
        .rev()
        .map_while(|line| line.strip_prefix("/// "))
        .collect();
    text.reverse();
    let text = text.join(" ");
    let text = text.trim_end_matches('.');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_mistake_is_listed() {
        let known: BTreeSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
        let caught: BTreeSet<&str> = FAULTS
            .iter()
            .map(|fault| fault.name)
            .chain(SURVIVED.map(|(name, _)| name))
            .chain(MODELLED.map(|(name, ..)| name))
            .collect();
        assert_eq!(known, caught);
        let models = crate::place::workspace().join("tests/models/tests/revocation.rs");
        let models = std::fs::read_to_string(models).unwrap_or_default();
        for (_, test, says) in MODELLED {
            assert!(
                models.contains(&format!("{test} in ")) && models.contains(says),
                "{test}"
            );
        }
        assert!(FAULTS.iter().all(|fault| !fault.says.is_empty()));
    }

    #[test]
    fn the_page_is_up_to_date() {
        let path = crate::place::workspace().join("docs/src/seeded-faults.md");
        assert!(
            std::fs::read_to_string(path).ok() == page().ok(),
            "cargo lab list --seeded > docs/src/seeded-faults.md"
        );
    }
}
