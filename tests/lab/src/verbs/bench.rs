//! `cargo lab bench`: what the hypervisor costs, in exact counts.
//!
//! One machine, one run: every workload first without, then below the
//! hypervisor, then the counters of the emulator and of `hvdetect status`. Each
//! workload runs twice unmeasured, and is then measured between two marks that it
//! sets itself: the emulator's counters are exact on any number of processors,
//! guest's and hypervisor's instructions alike. A workload of one thread is counted
//! on the processor that it is bound to, one of several threads on all. The least
//! of a few measurements counts: the clock's interrupts fall into the others.
//!
//! QEMU counts nothing, but with `-icount` its time-stamp counter counts the
//! instructions of guest and hypervisor together, on one processor: MiniNT's own
//! reading is taken there, and exits are those of `hvdetect status`.
//!
//! Cycles are not measured: no processor is emulated to that depth.

use super::processor::Processor;
use crate::code::{Function, Image};
use crate::images::{self, Images, Profile, Wanted};
use crate::machine::{Client, Emulator, Look, Machine, Options, Vendor, exits};
use crate::progress;
use crate::session::Session;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `cargo lab bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Workloads to run; all by default
    names: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Numbers of processors, one machine each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4],
          value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: Vec<u32>,
    #[command(flatten)]
    processor: Processor,
    /// RAM in MiB
    #[arg(long, default_value_t = 256)]
    ram: u32,
    /// Switches of `hvdetect start`: --start=--no-next-rip
    #[arg(long, allow_hyphen_values = true)]
    start: Vec<String>,
    /// Also tell in which functions root mode spends its instructions
    #[arg(long, conflicts_with = "json")]
    profile: bool,
}

/// A workload of MiniNT and how many rounds of it are counted.
struct Workload {
    name: &'static str,
    rounds: u32,
    /// Everything that belongs to it happens on processor 0.
    bound: bool,
    about: &'static str,
}

/// MiniNT's workloads (`tests/minint/src/machine`).
const WORKLOADS: &[Workload] = &[
    Workload {
        name: "nop",
        rounds: 1_000,
        bound: true,
        about: "pure compute: a million rounds of a loop in ring 0",
    },
    Workload {
        name: "memory",
        rounds: 50,
        bound: true,
        about: "50 passes over 1 MiB",
    },
    Workload {
        name: "walk",
        rounds: 50,
        bound: true,
        about: "50 passes over 1,024 pages, one read a page",
    },
    Workload {
        name: "alloc",
        rounds: 10_000,
        bound: true,
        about: "10,000 pool blocks of changing size",
    },
    Workload {
        name: "threads",
        rounds: 1_000,
        bound: false,
        about: "1,000 switches between two threads and back",
    },
    Workload {
        name: "syscalls",
        rounds: 1_000,
        bound: false,
        about: "1,000 rounds of a ring-3 program: three system calls each",
    },
    Workload {
        name: "ipi",
        rounds: 200,
        bound: false,
        about: "200 inter-processor calls",
    },
    Workload {
        name: "tlb",
        rounds: 1_000,
        bound: true,
        about: "1,000 pages mapped, written, unmapped",
    },
    Workload {
        name: "loads",
        rounds: 20,
        bound: false,
        about: "20 times a driver loaded and unloaded",
    },
    Workload {
        name: "rdmsr",
        rounds: 1_000,
        bound: true,
        about: "1,000 reads of IA32_EFER",
    },
    Workload {
        name: "cpuid",
        rounds: 1_000,
        bound: true,
        about: "1,000 CPUID: one exit each",
    },
    Workload {
        name: "first-touch",
        rounds: 1_000,
        bound: true,
        about: "1,000 written pages of nobody's executed for the first time",
    },
    Workload {
        name: "warm-touch",
        rounds: 1_000,
        bound: true,
        about: "the same pages executed once more",
    },
    Workload {
        name: "ping-pong",
        rounds: 1_000,
        bound: true,
        about: "one page, 1,000 times written and executed",
    },
    Workload {
        name: "self-store",
        rounds: 1_000,
        bound: true,
        about: "one page that stores into itself, 1,000 times",
    },
    Workload {
        name: "self-increment",
        rounds: 1_000,
        bound: true,
        about: "one page that reads and writes itself, 1,000 times",
    },
];

/// How often each is measured.
const MEASUREMENTS: u32 = 3;

/// One workload, once.
struct Sample {
    instructions: u64,
    counters: Value,
    status: Option<Value>,
}

/// All that one run of the machine gave.
struct Figures {
    off: Vec<Sample>,
    on: Vec<Sample>,
    /// `hvdetect status` below the hypervisor.
    status: Value,
    /// Most instructions that a core's launch took, where they are counted.
    launch: Option<u64>,
    /// Most instructions that a core's leave took.
    leave: Option<u64>,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wanted: Vec<&Workload> = WORKLOADS
        .iter()
        .filter(|workload| {
            arguments.names.is_empty() || arguments.names.iter().any(|name| name == workload.name)
        })
        .collect();
    if wanted.is_empty() {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        bail!("no such workload; there are: {}", names.join(", "));
    }
    let mut options = arguments.processor.options()?;
    if !options.emulator.offers(Look::Counts) {
        if options.emulator != Emulator::Qemu || arguments.cpus != [1] || arguments.profile {
            bail!(
                "{} counts no instructions: use --emulator bochs, or qemu with --cpus 1",
                options.emulator.name()
            );
        }
        options.icount = true;
    }
    let switch = match options.vendor {
        Vendor::Intel => "CR4.VMXE",
        Vendor::Amd => "EFER.SVME",
    };
    let tools = arguments.processor.tools()?;
    let images = images::build(&tools.toolchain, Profile::Release, Wanted::All)?;
    let session = Session::new(&images);
    for &cpus in &arguments.cpus {
        let options = Options {
            cpus,
            ram: arguments.ram,
            quantum: 1,
            time_limit: Duration::from_mins(15),
            ..options.clone()
        };
        let machine = session.boot(options, Some(&tools.bochs))?;
        let profiler = arguments
            .profile
            .then(|| Profiler::new(&images))
            .transpose()?;
        let figures = measure(
            &session,
            &machine,
            &wanted,
            &arguments.start,
            profiler.as_ref(),
        )
        .with_context(|| format!("the machine's state at the failure\n{}", machine.report()))?;
        machine.shut_down()?;
        let lines = lines(machine.options(), &wanted, &figures);
        if arguments.json {
            for line in &lines {
                println!("{}", line.fields);
            }
        } else {
            println!("\n{cpus} processors, {} MiB", arguments.ram);
            print_table(&lines, &figures.status);
        }
    }
    if !arguments.json {
        println!();
        for workload in &wanted {
            println!("{:14} {}", workload.name, workload.about);
        }
        println!("launch         {switch} set to first VM entry, worst core");
        println!("leave          last VM exit to {switch} clear, worst core");
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    session: &Session<'_>,
    machine: &Machine,
    wanted: &[&Workload],
    switches: &[String],
    profiler: Option<&Profiler>,
) -> Result<Figures> {
    let client = machine.client()?;
    client.start_service("hvdetect")?;
    let hvdetect = |words: &[&str]| -> Result<String> {
        let output = session.hvdetect(machine, words)?;
        if output.code != 0 {
            bail!("hvdetect {}: {}", words.join(" "), output.stderr);
        }
        Ok(output.stdout)
    };
    let status = || -> Result<Value> {
        serde_json::from_str(hvdetect(&["status", "--json"])?.trim()).context("status")
    };
    let counts = machine.options().emulator.offers(Look::Counts);
    let once = |workload: &Workload, monitored: bool| -> Result<Sample> {
        let before = if monitored { status()? } else { Value::Null };
        let (instructions, counters) = if counts {
            let marks_before = machine.marks()?;
            execute(&client, workload)?;
            let counters = between_marks(&marks_before, &machine.marks()?)
                .with_context(|| format!("workload {} set no marks", workload.name))?;
            let counters = if workload.bound {
                let first = counters.as_array().into_iter().flatten().take(1);
                Value::Array(first.cloned().collect())
            } else {
                counters
            };
            (sum(&counters, "total"), counters)
        } else {
            (execute(&client, workload)?, Value::Null)
        };
        let status = if monitored {
            Some(difference(&before, &status()?))
        } else {
            None
        };
        Ok(Sample {
            instructions,
            counters,
            status,
        })
    };
    let sample = |workload: &Workload, monitored: bool| -> Result<Sample> {
        progress::note(&format!(
            "{} {} the hypervisor",
            workload.name,
            if monitored { "below" } else { "without" }
        ));
        // Twice for warmth: caches of the kernel fill, and the first round below the
        // hypervisor promotes pages.
        execute(&client, workload)?;
        let mut least: Option<Sample> = None;
        for _ in 0..MEASUREMENTS {
            let sample = once(workload, monitored)?;
            if least
                .as_ref()
                .is_none_or(|known| sample.instructions < known.instructions)
            {
                least = Some(sample);
            }
        }
        least.context("nothing was measured")
    };
    let off = wanted
        .iter()
        .map(|workload| sample(workload, false))
        .collect::<Result<_>>()?;
    let start: Vec<&str> = std::iter::once("start")
        .chain(switches.iter().map(String::as_str))
        .collect();
    drop(hvdetect(&start)?);
    let on = wanted
        .iter()
        .map(|workload| {
            let sample = sample(workload, true);
            if let Some(profiler) = profiler {
                drop(machine.profile()?);
                execute(&client, workload)?;
                profiler.print(workload, machine)?;
            }
            sample
        })
        .collect::<Result<_>>()?;
    // Gives its pages back.
    client.machine("workload warm-touch 0")?;
    let status = status()?;
    let worst_of = |name: &str| -> Result<Option<u64>> {
        counts
            .then(|| Ok(worst(&machine.counters()?, name)))
            .transpose()
    };
    let launch = worst_of("launch")?;
    drop(hvdetect(&["stop"])?);
    let leave = worst_of("leave")?;
    client.stop_service("hvdetect")?;
    Ok(Figures {
        off,
        on,
        status,
        launch,
        leave,
    })
}

/// Tells in which functions of the driver root mode spends its instructions.
struct Profiler {
    image: Image,
}

impl Profiler {
    fn new(images: &Images) -> Result<Self> {
        let driver = images.driver.as_ref().context("no driver built")?;
        Ok(Self {
            image: Image::read(driver, &[])?,
        })
    }

    /// Instructions a round of the workload, by function, the most first.
    fn print(&self, workload: &Workload, machine: &Machine) -> Result<()> {
        const LINES: usize = 24;
        // "ldr: hvdetect_driver.sys at 0xfffff8055002c000, 204800 bytes, …"
        let console = machine.console();
        let base = console
            .rsplit_once("hvdetect_driver.sys at 0x")
            .and_then(|(_, rest)| rest.split(',').next())
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .context("the console does not tell where the driver is")?;
        let mut functions: BTreeMap<&str, u64> = BTreeMap::new();
        for pair in machine.profile()?.as_array().into_iter().flatten() {
            let (Some(rip), Some(count)) = (pair[0].as_u64(), pair[1].as_u64()) else {
                continue;
            };
            let function = u32::try_from(rip.wrapping_sub(base))
                .ok()
                .and_then(|rva| self.image.at(rva));
            *functions
                .entry(function.map_or("?", Function::name))
                .or_default() += count;
        }
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        println!("{}: root mode, instructions a round", workload.name);
        for (name, count) in functions.into_iter().take(LINES) {
            println!("{:8} {name}", count / u64::from(workload.rounds));
        }
        Ok(())
    }
}

/// One object a measurement, as `docs/src/interfaces.md` section 6 has it, and
/// the root mode's instructions by exit reason.
struct Line {
    fields: Value,
    root: Value,
}

fn lines(options: &Options, wanted: &[&Workload], figures: &Figures) -> Vec<Line> {
    let status = &figures.status;
    let frame = |workload: &str, hv: bool, instructions: u64, ratio: Option<f64>| {
        let fields = json!({
            "workload": workload,
            "vendor": options.vendor.name(),
            "emulator": options.emulator.name(),
            "model": options.model,
            "cpus": options.cpus,
            "hv": hv,
            "instructions": instructions,
            "ratio": ratio,
            "exits": {},
            "flips": 0,
            "invalidations": 0,
            "table_bytes": if hv { status["table_bytes"].clone() } else { json!(0) },
            "core_bytes": if hv { status["core_bytes"].clone() } else { json!(0) },
        });
        Line {
            fields,
            root: json!({}),
        }
    };
    let mut lines = Vec::new();
    for ((workload, off), on) in wanted.iter().zip(&figures.off).zip(&figures.on) {
        lines.push(frame(workload.name, false, off.instructions, Some(1.0)));
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = on.instructions as f64 / off.instructions.max(1) as f64;
        let mut line = frame(workload.name, true, on.instructions, Some(ratio));
        line.fields["exits"] = named(options.vendor, &total(&on.counters, "exits"));
        line.root = named(options.vendor, &total(&on.counters, "root_by_exit"));
        if let Some(status) = &on.status {
            if on.counters.is_null() {
                line.fields["exits"] = status["exits"].clone();
            }
            line.fields["flips"] = status["flips"].clone();
            line.fields["invalidations"] = status["invalidations"].clone();
        }
        lines.push(line);
    }
    for (name, instructions) in [("launch", figures.launch), ("leave", figures.leave)] {
        lines.extend(instructions.map(|count| frame(name, true, count, None)));
    }
    lines
}

/// Counts by the names of the exit reasons.
fn named(vendor: Vendor, counts: &Value) -> Value {
    Value::Object(
        counts
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, count)| (exits::name(vendor, reason), count.clone()))
            .collect(),
    )
}

/// The greatest of a counter over all processors.
fn worst(counters: &Value, name: &str) -> u64 {
    counters
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cpu| cpu[name].as_u64())
        .max()
        .unwrap_or(0)
}

fn print_table(lines: &[Line], status: &Value) {
    println!(
        "{:14} {:>3} {:>12} {:>9} {:>6} {:>7}  VM exits (instructions of root mode each)",
        "workload", "hv", "instructions", "ratio", "flips", "invept"
    );
    for Line { fields, root } in lines {
        let exits: Vec<String> = fields["exits"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, count)| Some((name, count.as_u64().filter(|&count| count > 0)?)))
            .map(|(name, count)| match root[name].as_u64() {
                Some(root) => format!("{name} {count} ({})", root / count),
                None => format!("{name} {count}"),
            })
            .collect();
        println!(
            "{:14} {:>3} {:>12} {:>9} {:>6} {:>7}  {}",
            fields["workload"].as_str().unwrap_or("?"),
            if fields["hv"] == true { "on" } else { "off" },
            fields["instructions"].to_string(),
            fields["ratio"]
                .as_f64()
                .map_or_else(String::new, |ratio| format!("{ratio:.6}")),
            fields["flips"].to_string(),
            fields["invalidations"].to_string(),
            exits.join(", ")
        );
    }
    println!(
        "nested tables {} bytes; {} bytes a core",
        status["table_bytes"], status["core_bytes"]
    );
}

/// Runs a workload in the machine. The time-stamp counter's ticks that it took.
fn execute(client: &Client, workload: &Workload) -> Result<u64> {
    let text = client.machine(&format!("workload {} {}", workload.name, workload.rounds))?;
    let reply: Value = serde_json::from_str(&text)
        .with_context(|| format!("workload {}: {text}", workload.name))?;
    reply["instructions"]
        .as_u64()
        .with_context(|| format!("workload {} reports no count: {text}", workload.name))
}

/// What happened between the two marks (port 0xE6) that the workload set.
fn between_marks(before: &Value, after: &Value) -> Option<Value> {
    let known = before.as_array()?.len();
    let [first, .., last] = after.as_array()?.get(known..)? else {
        return None;
    };
    Some(difference(&first["cpus"], &last["cpus"]))
}

/// Number by number, what has grown.
fn difference(before: &Value, after: &Value) -> Value {
    match (before, after) {
        (Value::Number(a), Value::Number(b)) => match (a.as_u64(), b.as_u64()) {
            (Some(a), Some(b)) => json!(b.saturating_sub(a)),
            _ => after.clone(),
        },
        (before, Value::Object(map)) => Value::Object(
            map.iter()
                .map(|(key, value)| (key.clone(), difference(&before[key], value)))
                .collect(),
        ),
        (before, Value::Array(list)) => Value::Array(
            list.iter()
                .enumerate()
                .map(|(index, value)| difference(&before[index], value))
                .collect(),
        ),
        _ => after.clone(),
    }
}

/// Sums a counter over all processors.
fn sum(counters: &Value, name: &str) -> u64 {
    counters
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cpu| cpu[name].as_u64())
        .sum()
}

/// Sums a map of counters over all processors.
fn total(counters: &Value, name: &str) -> Value {
    let mut sum: Map<String, Value> = Map::new();
    for cpu in counters.as_array().into_iter().flatten() {
        for (key, count) in cpu[name].as_object().into_iter().flatten() {
            let known = sum.get(key).and_then(Value::as_u64).unwrap_or(0);
            let count = known + count.as_u64().unwrap_or(0);
            if count > 0 {
                sum.insert(key.clone(), json!(count));
            }
        }
    }
    Value::Object(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_go_through_objects_and_arrays() {
        let before = json!([{"a": 1, "exits": {"10": 2}}]);
        let after = json!([{"a": 5, "exits": {"10": 2, "48": 7}, "name": "x"}]);
        assert_eq!(
            difference(&before, &after),
            json!([{"a": 4, "exits": {"10": 0, "48": 7}, "name": "x"}])
        );
    }

    #[test]
    fn marks_bound_what_is_counted() {
        let mark = |number: u32, total: u32| json!({"mark": number, "cpus": [{"total": total}]});
        let before = json!([mark(1, 5)]);
        let after = json!([mark(1, 5), mark(1, 100), mark(2, 107)]);
        assert_eq!(between_marks(&before, &after), Some(json!([{"total": 7}])));
        assert_eq!(between_marks(&before, &before), None);
    }

    #[test]
    fn reasons_get_their_names() {
        assert_eq!(
            named(Vendor::Intel, &json!({"10": 3, "77": 1})),
            json!({"cpuid": 3, "reason-77": 1})
        );
    }

    #[test]
    fn totals_are_over_all_processors_and_leave_zeros_out() {
        let counters = json!([{"exits": {"10": 1, "0": 0}}, {"exits": {"10": 2}}]);
        assert_eq!(total(&counters, "exits"), json!({"10": 3}));
    }
}
