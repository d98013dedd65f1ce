//! The exerciser: a driver that tries instructions, events and registers, and
//! tells what came of each. The same commands run on the bare machine, below the
//! hypervisor, and after it; the lines must be the same but for a short list.

use super::Stage;
use crate::machine::Client;
use crate::machine::Vendor;
use anyhow::{Context, Result, bail, ensure};
use lab_link::Message;
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

const SERVICE: &str = "exerciser";
const COMMAND: u32 = 0x22_2000;
/// Bytes of an answer.
const CAPACITY: u32 = 512 * 1024;

/// A difference that is meant: `docs/src/allow-list.md`.
struct Allowed {
    /// How its lines begin.
    lines: &'static [&'static str],
    /// What may differ.
    what: What,
}

enum What {
    /// Anything.
    All,
    /// One bit of the number at this place of the line (from 0, behind the colon).
    Bit(usize, u32),
    /// Flips that include CR4.VMXE.
    VmxEnable,
}

const ALLOWED: [Allowed; 8] = [
    Allowed {
        lines: &["cpuid 0x1.0x0:"],
        what: What::Bit(2, 5),
    },
    Allowed {
        lines: &["CPUID leaf 1:"],
        what: What::Bit(3, 5),
    },
    Allowed {
        lines: &["msr 0x3a", "FEATURE_CONTROL:"],
        what: What::All,
    },
    Allowed {
        lines: &["msr 0x48", "msr 0x49", "VMX MSR "],
        what: What::All,
    },
    Allowed {
        lines: &["cr4 ^ ", "CR4 with VMXE:"],
        what: What::VmxEnable,
    },
    Allowed {
        lines: &["VMXON with CR4.VMXE:"],
        what: What::All,
    },
    // SVM reads as switched off by the firmware.
    Allowed {
        lines: &["VM_CR:", "msr 0xc0010114", "EFER.SVME ", "EFER with bit 12"],
        what: What::All,
    },
    // The privilege level is checked before the intercept: #GP, once SVME is set.
    Allowed {
        lines: &["VMRUN in ring 3:", "STGI in ring 3:"],
        what: What::All,
    },
];

/// The exerciser's device, opened.
pub(super) struct Exerciser<'a> {
    client: &'a Client,
    handle: u64,
}

impl<'a> Exerciser<'a> {
    pub(super) fn open(client: &'a Client) -> Result<Self> {
        client.start_service(SERVICE)?;
        let opened = client.request(&Message::Open {
            access: 0xC000_0000,
            path: r"\\.\exerciser",
        })?;
        ensure!(opened.status == 0, "open: {:#010x}", opened.status);
        Ok(Self {
            client,
            handle: opened.information,
        })
    }

    /// Runs a command; the lines of its answer.
    pub(super) fn ask(&self, command: &str) -> Result<Vec<String>> {
        let reply = self.client.request(&Message::Ioctl {
            handle: self.handle,
            code: COMMAND,
            capacity: CAPACITY,
            input: command.as_bytes(),
        })?;
        ensure!(
            reply.status == 0,
            "exerciser `{command}`: {:#010x}",
            reply.status
        );
        let text = String::from_utf8(reply.output).context("the exerciser's answer")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    pub(super) fn close(self) -> Result<()> {
        let closed = self.client.request(&Message::Close {
            handle: self.handle,
        })?;
        ensure!(closed.status == 0, "close: {:#010x}", closed.status);
        self.client.stop_service(SERVICE)
    }
}

/// Lines that only one of two answers has.
fn differences<'a>(one: &'a [String], other: &'a [String]) -> (Vec<&'a str>, Vec<&'a str>) {
    let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
    for line in one {
        *counts.entry(line).or_default() += 1;
    }
    for line in other {
        *counts.entry(line).or_default() -= 1;
    }
    let only = |sign: i32| {
        counts
            .iter()
            .filter(|(_, count)| **count * sign > 0)
            .map(|(line, _)| *line)
            .collect()
    };
    (only(1), only(-1))
}

/// A line without what may differ; `None` if nothing of it counts.
fn significant(line: &str) -> Option<String> {
    let Some(rule) = ALLOWED
        .iter()
        .find(|rule| rule.lines.iter().any(|start| line.starts_with(start)))
    else {
        return Some(line.to_owned());
    };
    match rule.what {
        What::All => None,
        What::Bit(place, bit) => {
            let (head, numbers) = line.split_once(": ")?;
            let numbers: Vec<String> = numbers
                .split(' ')
                .enumerate()
                .map(|(at, word)| match crate::finding::number(word) {
                    Some(value) if at == place => format!("{:#x}", value & !(1 << bit)),
                    _ => word.to_owned(),
                })
                .collect();
            Some(format!("{head}: {}", numbers.join(" ")))
        }
        What::VmxEnable => {
            let bits = line
                .strip_prefix("cr4 ^ ")
                .and_then(|rest| rest.split_once(':'))
                .and_then(|(bits, _)| crate::finding::number(bits));
            match bits {
                Some(bits) if bits & 1 << 13 == 0 => Some(line.to_owned()),
                _ => None,
            }
        }
    }
}

fn significant_lines(lines: &[String]) -> Vec<String> {
    lines.iter().filter_map(|line| significant(line)).collect()
}

/// The error names what differs.
fn same(what: &str, one: &[String], other: &[String]) -> Result<()> {
    let (lost, new) = differences(one, other);
    if lost.is_empty() && new.is_empty() {
        return Ok(());
    }
    let shorten = |lines: &[&str]| {
        let shown: Vec<&str> = lines.iter().take(40).copied().collect();
        let rest = lines.len() - shown.len();
        format!("{}\n({rest} more)", shown.join("\n"))
    };
    bail!(
        "{what} differs\nbefore:\n{}\nnow:\n{}",
        shorten(&lost),
        shorten(&new)
    )
}

/// Runs commands before, below and after the hypervisor, on the first and the
/// last processor.
fn compare(stage: &mut Stage<'_>, commands: &[&str]) -> Result<()> {
    stage.options.time_limit = stage.options.time_limit.max(Duration::from_mins(4));
    let client = stage.boot_with_driver()?;
    let exerciser = Exerciser::open(&client)?;
    let mut cpus = vec![0, stage.options.cpus - 1];
    cpus.dedup();
    let run = || -> Result<Vec<(String, Vec<String>)>> {
        let mut all = Vec::new();
        for cpu in &cpus {
            for command in commands {
                let command = format!("{cpu} {command}");
                let lines = exerciser.ask(&command)?;
                ensure!(!lines.is_empty(), "`{command}` says nothing");
                all.push((command, lines));
            }
        }
        Ok(all)
    };
    let before = run().context("on the bare machine")?;
    // What is wrong without us would not differ with us.
    for line in before.iter().flat_map(|(_, lines)| lines) {
        ensure!(!line.contains("WRONG"), "on the bare machine: {line}");
    }
    stage.must(&["start"])?;
    let below = run().context("below the hypervisor")?;
    let mut wrong = Vec::new();
    if let Err(error) = stage.witness() {
        wrong.push(format!("{error:#}"));
    }
    stage.must(&["stop"])?;
    let after = run().context("after stop")?;
    for (((command, one), (_, below)), (_, after)) in before.iter().zip(&below).zip(&after) {
        let (one_kept, below_kept) = (significant_lines(one), significant_lines(below));
        if let Err(error) = same(command, &one_kept, &below_kept) {
            wrong.push(format!("below the hypervisor: {error:#}"));
        }
        if let Err(error) = same(command, one, after) {
            wrong.push(format!("after stop: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    exerciser.close()?;
    stage.end()
}

pub(super) fn peers(stage: &mut Stage<'_>) -> Result<()> {
    compare(stage, &["peers"])
}

pub(super) fn msrs(stage: &mut Stage<'_>) -> Result<()> {
    compare(
        stage,
        &[
            "msrs 0 0x2000",
            "msrs 0xC0000000 0x2000",
            "msrs 0x40000000 0x1100",
            "scattered 20000",
        ],
    )
}

pub(super) fn cpuid(stage: &mut Stage<'_>) -> Result<()> {
    compare(
        stage,
        &[
            "cpuid 0 70",
            "cpuid 0x40000000 8",
            "cpuid 0x80000000 8",
            "cpuid 0xC0000000 2",
        ],
    )
}

pub(super) fn control_registers(stage: &mut Stage<'_>) -> Result<()> {
    compare(stage, &["cr 0", "cr 4", "xcr 10"])
}

/// Delivery of events through pages in the wrong state. The exerciser's pages are
/// executable pool, so their execution is found, and nothing else.
pub(super) fn delivery(stage: &mut Stage<'_>) -> Result<()> {
    compare(stage, &["deliver 2"])
}

/// NMIs at random moments, as many seen as sent, also while monitoring starts and
/// stops.
fn flood(stage: &mut Stage<'_>, count: u32) -> Result<()> {
    stage.options.time_limit = Duration::from_secs(120 + u64::from(count) / 200);
    let client = stage.boot_with_driver()?;
    let exerciser = Exerciser::open(&client)?;
    let cpus = stage.options.cpus;
    let run = |count: u32| -> Result<()> {
        let lines = exerciser.ask(&format!("0 flood {count}"))?;
        let mut seen_in_all = 0;
        for line in &lines {
            let Some((_, counts)) = line.split_once(": ") else {
                continue;
            };
            let numbers: Vec<u64> = counts
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|word| word.parse().ok())
                .collect();
            ensure!(
                numbers.len() == 2 && numbers[0] == numbers[1],
                "NMIs sent and seen:\n{}",
                lines.join("\n")
            );
            seen_in_all += numbers[1];
        }
        ensure!(
            lines.len() == cpus as usize + 1 && seen_in_all == u64::from(count),
            "{seen_in_all} of {count} NMIs seen:\n{}",
            lines.join("\n")
        );
        Ok(())
    };
    run(count / 10).context("on the bare machine")?;
    stage.must(&["start"])?;
    run(count).context("below the hypervisor")?;
    stage.witness()?;
    stage.must(&["stop"])?;
    run(count / 10).context("after stop")?;
    exerciser.close()?;
    stage.end()
}

pub(super) fn nmi_flood(stage: &mut Stage<'_>) -> Result<()> {
    flood(stage, 10_000)
}

pub(super) fn long_nmi_flood(stage: &mut Stage<'_>) -> Result<()> {
    flood(stage, 1_000_000)
}

/// A command of the exerciser that loads patterns, causes so many exits and tells
/// what differs then, on the first and the last processor.
fn hold(stage: &Stage<'_>, exerciser: &Exerciser<'_>, command: &str, exits: u32) -> Result<()> {
    for cpu in [0, stage.options.cpus - 1] {
        let lines = exerciser.ask(&format!("{cpu} {command} {exits}"))?;
        ensure!(
            lines == ["0 runs with a register that had changed"],
            "{}",
            lines.join("\n")
        );
    }
    Ok(())
}

/// Registers that no exit may touch hold their patterns over many exits.
fn patterns(stage: &mut Stage<'_>, command: &str, exits: u32) -> Result<()> {
    stage.options.time_limit = Duration::from_secs(120 + u64::from(exits) / 1000);
    let client = stage.boot_with_driver()?;
    let exerciser = Exerciser::open(&client)?;
    let run = |exits: u32| hold(stage, &exerciser, command, exits);
    run(1000).context("on the bare machine")?;
    stage.must(&["start"])?;
    run(exits).context("below the hypervisor")?;
    stage.must(&["stop"])?;
    run(1000).context("after stop")?;
    exerciser.close()?;
    stage.end()
}

pub(super) fn registers_survive(stage: &mut Stage<'_>) -> Result<()> {
    patterns(stage, "patterns", 10_000)
}

pub(super) fn registers_survive_a_million(stage: &mut Stage<'_>) -> Result<()> {
    patterns(stage, "patterns", 1_000_000)
}

pub(super) fn system_registers_survive(stage: &mut Stage<'_>) -> Result<()> {
    patterns(stage, "system", 10_000)
}

pub(super) fn system_registers_survive_a_million(stage: &mut Stage<'_>) -> Result<()> {
    patterns(stage, "system", 1_000_000)
}

/// SVM while it is off, without any hypervisor: its instructions are undefined, its
/// registers as the firmware left them, its switch works; and what the exerciser holds
/// patterns in keeps them.
pub(super) fn svm_on_the_bare_machine(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot()?.client()?;
    let exerciser = Exerciser::open(&client)?;
    for cpu in 0..stage.options.cpus {
        let text = exerciser.ask(&format!("{cpu} svm"))?.join("\n");
        ensure!(!text.contains("WRONG"), "processor {cpu}: {text}");
        for part in [
            "INVLPGA: #UD",
            "SVM is offered: true",
            "VM_CR: 0x0",
            "VM_HSAVE_PA: 0x0",
            "EFER.SVME reads 1",
        ] {
            ensure!(
                text.contains(part),
                "processor {cpu} lacks \"{part}\":\n{text}"
            );
        }
    }
    hold(stage, &exerciser, "system", 10_000)?;
    hold(stage, &exerciser, "patterns", 1000)?;
    exerciser.close()?;
    stage.machine()?.shut_down()
}

/// SVM's instructions, registers and switch: before, below and after.
pub(super) fn svm(stage: &mut Stage<'_>) -> Result<()> {
    compare(stage, &["svm"])
}

/// INIT and startup IPIs for a processor that is virtualized: it comes back, and
/// stays virtualized.
pub(super) fn restarts(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    let restart = |stage: &Stage<'_>| -> Result<()> {
        for cpu in 1..stage.options.cpus {
            for _ in 0..3 {
                let answer = client.machine(&format!("restart {cpu}"))?;
                ensure!(
                    answer.contains("\"back\":true"),
                    "processor {cpu} did not come back: {answer}"
                );
            }
        }
        Ok(())
    };
    restart(stage).context("on the bare machine")?;
    stage.must(&["start"])?;
    restart(stage).context("below the hypervisor")?;
    if stage.options.vendor == Vendor::Amd {
        // A core that INIT resets is let go, and called no more.
        let status = stage.status()?;
        let gaps = status["gaps"].to_string();
        ensure!(gaps.contains("core"), "no core is missing: {gaps}");
    } else {
        stage.witness()?;
    }
    stage.must(&["stop"])?;
    restart(stage).context("after stop")?;
    stage.end()
}

/// A triple fault ends the machine in the same way with and without us.
pub(super) fn triple_fault(stage: &mut Stage<'_>) -> Result<()> {
    let mut ends = Vec::new();
    for start in [false, true] {
        let client = stage.boot_with_driver()?;
        let exerciser = Exerciser::open(&client)?;
        if start {
            stage.must(&["start"])?;
        }
        // No reply comes.
        drop(exerciser.ask("0 triple"));
        let machine = stage.machine()?;
        let end = Instant::now() + Duration::from_secs(10);
        while machine.ended().is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        ends.push(machine.ended().map(|status| status.code()));
    }
    ensure!(
        ends[0].is_some() && ends[0] == ends[1],
        "the machine ended with {:?} without and {:?} below the hypervisor",
        ends[0],
        ends[1]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn differences_are_found_in_both_directions() {
        let (one, other) = (lines("a\nb\nb"), lines("b\na\nc"));
        assert_eq!(differences(&one, &other), (vec!["b"], vec!["c"]));
        assert!(same("x", &one, &one).is_ok());
        assert!(same("x", &one, &other).is_err());
    }

    #[test]
    fn the_allow_list_is_short_and_narrow() {
        assert!(ALLOWED.len() <= 12);
        let kept = |line: &str| significant(line);
        assert_eq!(kept("msr 0x3a: 0x5 high 0x0"), None);
        assert_eq!(kept("msr 0x481: 0x5 high 0x0"), None);
        assert!(kept("msr 0x1b: 0xfee00900 high 0x0").is_some());
        assert_eq!(
            kept("cpuid 0x1.0x0: 0x1 0x2 0x21 0x4"),
            kept("cpuid 0x1.0x0: 0x1 0x2 0x1 0x4")
        );
        assert_ne!(
            kept("cpuid 0x1.0x0: 0x1 0x2 0x21 0x4"),
            kept("cpuid 0x1.0x0: 0x1 0x2 0x20 0x4")
        );
        assert_eq!(kept("cr4 ^ 0x2000: reads 0x26f8, was 0x6f8"), None);
        assert!(kept("cr4 ^ 0x4000: reads 0x46f8, was 0x6f8").is_some());
    }
}
