//! What the guest's own kernel sees: the same registers before, below and after
//! the hypervisor, and every NMI exactly once.

use super::Stage;
use crate::machine::Vendor;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::cell::Cell;
use std::time::Duration;

/// Registers that belong to whichever thread happens to run, or that change by
/// themselves.
const OF_THE_MOMENT: [&str; 6] = ["cr2", "cr3", "dr6", "kernel_gs_base", "fs_base", "cr8"];

/// `state` of the machine: all processors at one moment.
pub(super) fn state(stage: &Stage<'_>) -> Result<Value> {
    let text = stage.machine()?.client()?.machine("state")?;
    serde_json::from_str(&text).context("state of the processors")
}

/// Every difference between two states, as sentences.
pub(super) fn differences(before: &Value, after: &Value) -> Vec<String> {
    compare(before, after, |_, _, _| false)
}

/// The one register of each vendor that reads differently below the hypervisor
/// (`docs/src/allow-list.md`): `IA32_FEATURE_CONTROL` loses "VMX outside SMX",
/// `VM_CR` gains LOCK and SVMDIS.
fn allowed(name: &str, before: &Value, below: &Value) -> bool {
    let value = |text: &Value| text.as_str().and_then(crate::finding::number);
    match (name, value(before), value(below)) {
        ("feature_control", Some(before), Some(below)) => below == before & !4,
        ("vm_cr", Some(before), Some(below)) => below == before | 0x18,
        _ => false,
    }
}

/// As [`differences`], but for those that `forgive` accepts.
fn compare(
    before: &Value,
    after: &Value,
    forgive: fn(&str, &Value, &Value) -> bool,
) -> Vec<String> {
    let cpus = |state: &Value| state["cpus"].as_array().cloned().unwrap_or_default();
    let (before, after) = (cpus(before), cpus(after));
    let mut found = Vec::new();
    if before.len() != after.len() || before.is_empty() {
        found.push(format!(
            "{} processors before, {} after",
            before.len(),
            after.len()
        ));
    }
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        for (name, value) in before.as_object().into_iter().flatten() {
            if !OF_THE_MOMENT.contains(&name.as_str())
                && *value != after[name]
                && !forgive(name, value, &after[name])
            {
                found.push(format!(
                    "CPU {number} {name}: {value}, then {}",
                    after[name]
                ));
            }
        }
    }
    found
}

pub(super) fn is_the_same_before_below_and_after(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    // Not the value that an exit loads: local and global exact breakpoints.
    client.machine("dr7 0x700")?;
    let before = state(stage)?;
    for round in 1..=2 {
        stage.must(&["start"])?;
        let below = compare(&before, &state(stage)?, allowed);
        ensure!(
            below.is_empty(),
            "below the hypervisor (round {round}): {}",
            below.join("; ")
        );
        stage.must(&["stop"])?;
        let after = differences(&before, &state(stage)?);
        ensure!(
            after.is_empty(),
            "after stop (round {round}): {}",
            after.join("; ")
        );
    }
    stage.end()
}

/// NMIs that nobody claims, as many as were sent: none is lost while the
/// hypervisor uses NMIs for itself, and none of its own reaches the guest.
pub(super) fn nmis_are_neither_lost_nor_invented(stage: &mut Stage<'_>) -> Result<()> {
    drop(stage.boot_with_driver()?);
    let all = Cell::new(0);
    let send = |stage: &Stage<'_>| -> Result<()> {
        let text = stage.machine()?.client()?.machine("nmi all 50")?;
        let reply: Value = serde_json::from_str(&text).context("nmi")?;
        let count = |name: &str| reply[name].as_u64();
        match (count("sent"), count("unclaimed"), count("total")) {
            (Some(sent), Some(seen), Some(total)) if sent == seen && sent > 0 => {
                all.set(all.get() + sent);
                // Between the requests, too, none is invented.
                ensure!(
                    total == all.get(),
                    "NMIs seen in all: {total}, sent in all: {}",
                    all.get()
                );
                Ok(())
            }
            _ => bail!("NMIs sent and seen: {text}"),
        }
    };
    send(stage).context("without the hypervisor")?;
    stage.must(&["start"])?;
    send(stage).context("below the hypervisor")?;
    // Foreign code makes the cores kick each other meanwhile.
    let client = stage.machine()?.client()?;
    client.start_service("pool_shellcode")?;
    send(stage).context("below the hypervisor, while pages change")?;
    client.stop_service("pool_shellcode")?;
    stage.must(&["stop"])?;
    send(stage).context("after stop")?;
    stage.end()
}

/// CPUID shows the guest's own CR4, not that of root mode.
pub(super) fn cpuid_follows_cr4(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    let bare = client.machine("osxsave")?;
    ensure!(bare == r#"{"set":1,"clear":0}"#, "the bare machine: {bare}");
    stage.must(&["start"])?;
    let below = client.machine("osxsave")?;
    ensure!(below == bare, "OSXSAVE below the hypervisor: {below}");
    stage.must(&["stop"])?;
    stage.end()
}

/// Once a page that wrote itself is left alone, nothing is stepped any more. Plain
/// stores are carried out without a step; reading and writing at once needs one.
pub(super) fn steps_end(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    client.machine("workload self-increment 100")?;
    let vendor = stage.options.vendor;
    let traps = || -> Result<u64> {
        let status = stage.status()?;
        // AMD's processors have no exit of that name: RFLAGS.TF and an intercepted #DB.
        let count = match vendor {
            Vendor::Intel => &status["exits"]["monitor-trap-flag"],
            Vendor::Amd => &status["exits"]["exception"],
        };
        Ok(count.as_u64().unwrap_or(0))
    };
    let before = traps()?;
    ensure!(before >= 100, "only {before} instructions were stepped");
    client.machine("workload nop 10")?;
    let after = traps()?;
    ensure!(after == before, "steps go on: {before}, then {after}");
    stage.must(&["stop"])?;
    stage.end()
}

/// A million exits, over which the vector registers and MXCSR stay what they were.
pub(super) fn vectors_survive(stage: &mut Stage<'_>) -> Result<()> {
    const EXITS: u32 = 1_000_000;
    stage.options.time_limit = stage.options.time_limit.max(Duration::from_mins(4));
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    let text = client.machine(&format!("workload vectors {EXITS}"))?;
    let reply: Value = serde_json::from_str(&text).context("vectors")?;
    ensure!(reply["wrong"] == 0, "vector registers have changed: {text}");
    let status = stage.status()?;
    let of = |name: &str| status["exits"][name].as_u64().unwrap_or(0);
    let exits = of("cpuid") + of("msr");
    ensure!(exits >= u64::from(EXITS), "only {exits} exits");
    stage.must(&["stop"])?;
    stage.end()
}

/// Memory types that the system changes while it is monitored: the nested tables
/// follow.
pub(super) fn memory_types_follow(stage: &mut Stage<'_>) -> Result<()> {
    // IA32_MTRR_PHYSBASE7 and PHYSMASK7: write-through at 128 MiB, 1 MiB long.
    const BASE: (u32, u64) = (0x20E, 0x0800_0004);
    const MASK: (u32, u64) = (0x20F, 0x7F_FFF0_0800);
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    stage.witness()?;
    let write = |(register, value): (u32, u64)| -> Result<()> {
        client.machine(&format!("msr {register} {value}")).map(drop)
    };
    write(BASE)?;
    write(MASK)?;
    stage.witness().context("after a new range")?;
    write((MASK.0, 0))?;
    stage.witness().context("after the range has gone")?;
    write((BASE.0, 0))?;
    stage.must(&["stop"])?;
    stage.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named_and_the_moment_is_forgiven() {
        let before = json!({"cpus": [{"cr0": "0x1", "cr3": "0x1000"}, {"cr0": "0x1"}]});
        let after = json!({"cpus": [{"cr0": "0x1", "cr3": "0x2000"}, {"cr0": "0x3"}]});
        assert!(differences(&before, &before).is_empty());
        assert_eq!(
            differences(&before, &after),
            ["CPU 1 cr0: \"0x1\", then \"0x3\""]
        );
        assert_eq!(differences(&before, &json!({"cpus": []})).len(), 1);
        let control = |value: &str| json!({"cpus": [{"feature_control": value}]});
        assert_eq!(differences(&control("0x5"), &control("0x1")).len(), 1);
        assert!(compare(&control("0x5"), &control("0x1"), allowed).is_empty());
        assert_eq!(compare(&control("0x5"), &control("0x0"), allowed).len(), 1);
        let vm_cr = |value: &str| json!({"cpus": [{"vm_cr": value}]});
        assert!(compare(&vm_cr("0x0"), &vm_cr("0x18"), allowed).is_empty());
        assert_eq!(compare(&vm_cr("0x0"), &vm_cr("0x10"), allowed).len(), 1);
    }
}
