//! What other programs read: every promised field is there, of its type, and a
//! list that is promised to be exact is exact (`docs/src/interfaces.md`,
//! section 6).

use super::Stage;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::process::Command;

/// What a field may be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Count,
    Number,
    Flag,
    Object,
    List,
    /// An address: a string "0x…".
    Address,
    /// That, or null.
    Or(&'static Kind),
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Count => value.is_u64(),
            Self::Number => value.is_number(),
            Self::Flag => value.is_boolean(),
            Self::Object => value.is_object(),
            Self::List => value.is_array(),
            Self::Address => value.as_str().is_some_and(|text| {
                text.starts_with("0x") && crate::finding::number(text).is_some()
            }),
            Self::Or(kind) => value.is_null() || kind.fits(value),
        }
    }
}

const FINDING: &[(&str, Kind)] = &[
    ("schema", Kind::Count),
    ("seq", Kind::Count),
    ("kind", Kind::Text),
    ("severity", Kind::Text),
    ("core", Kind::Count),
    ("time", Kind::Text),
    ("rip", Kind::Or(&Kind::Address)),
    ("gla", Kind::Or(&Kind::Address)),
    ("gpa", Kind::Or(&Kind::Address)),
    ("cpl", Kind::Or(&Kind::Count)),
    ("cr3", Kind::Or(&Kind::Address)),
    ("actor", Kind::Object),
    ("victim", Kind::Object),
    ("return_address", Kind::Or(&Kind::Address)),
    ("old", Kind::Or(&Kind::Text)),
    ("new", Kind::Or(&Kind::Text)),
    ("sha256", Kind::Or(&Kind::Text)),
    ("count", Kind::Count),
];

const PLACE: &[(&str, Kind)] = &[
    ("module", Kind::Or(&Kind::Text)),
    ("section", Kind::Or(&Kind::Text)),
    ("offset", Kind::Or(&Kind::Address)),
];

const STATUS: &[(&str, Kind)] = &[
    ("state", Kind::Text),
    ("vendor", Kind::Text),
    ("cores", Kind::Count),
    ("features", Kind::List),
    ("coverage", Kind::Text),
    ("exits", Kind::Object),
    ("pages", Kind::Object),
    ("table_bytes", Kind::Count),
    ("findings", Kind::Count),
    ("dropped", Kind::Object),
];

const BENCH: &[(&str, Kind)] = &[
    ("workload", Kind::Text),
    ("vendor", Kind::Text),
    ("emulator", Kind::Text),
    ("model", Kind::Text),
    ("cpus", Kind::Count),
    ("hv", Kind::Flag),
    ("instructions", Kind::Count),
    ("ratio", Kind::Or(&Kind::Number)),
    ("exits", Kind::Object),
    ("flips", Kind::Count),
    ("invalidations", Kind::Count),
    ("table_bytes", Kind::Count),
    ("core_bytes", Kind::Count),
];

/// Every field is there and of its type.
fn has(object: &Value, fields: &[(&str, Kind)]) -> Result<()> {
    for (name, kind) in fields {
        let value = object
            .get(name)
            .with_context(|| format!("no \"{name}\" in {object}"))?;
        ensure!(
            kind.fits(value),
            "\"{name}\" is no {kind:?}: {value} in {object}"
        );
    }
    Ok(())
}

fn objects(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn findings(lines: &[Value]) -> Result<()> {
    ensure!(!lines.is_empty(), "no finding");
    for line in lines {
        has(line, FINDING)?;
        has(&line["actor"], PLACE)?;
        has(&line["victim"], PLACE)?;
        has(&line["victim"], &[("export", Kind::Or(&Kind::Text))])?;
    }
    Ok(())
}

/// Runs this program once more, with the images that there are.
fn lab(arguments: &[&str]) -> Result<(bool, Vec<Value>)> {
    let output = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env(crate::images::NO_BUILD, "1")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let objects = objects(&text).with_context(|| {
        format!(
            "cargo lab {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok((output.status.success(), objects))
}

pub(super) fn of_the_command(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    let status = || -> Result<()> {
        let lines = objects(&stage.must(&["status", "--json"])?)?;
        let [status] = lines.as_slice() else {
            bail!("status --json printed {} objects", lines.len());
        };
        has(status, STATUS)
    };
    status().context("while stopped")?;
    stage.must(&["start"])?;
    client.start_service("pool_shellcode")?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while stage.findings()?.is_empty() && std::time::Instant::now() < end {}
    let watched = stage.must(&["watch", "--json", "--all", "--no-log", "--timeout", "0.3"])?;
    findings(&objects(&watched)?)?;
    status().context("while monitoring")?;
    client.stop_service("pool_shellcode")?;
    stage.must(&["stop"])?;
    stage.end()
}

pub(super) fn of_the_lab(stage: &mut Stage<'_>) -> Result<()> {
    // This case boots no machine of its own: the verbs do.
    let driver = stage
        .images()
        .specimens
        .iter()
        .find(|path| path.ends_with("early_bird.sys"))
        .context("no early_bird.sys")?
        .display()
        .to_string();
    let (good, lines) = lab(&[
        "run",
        "--json",
        "--cpus",
        "1",
        "--driver",
        &driver,
        "--exec",
        "hvdetect start",
        "--exec",
        "sleep 1",
    ])?;
    let (last, found) = lines.split_last().context("run --json printed nothing")?;
    findings(found).context("run --json")?;
    has(last, &[("exit", Kind::Count), ("reason", Kind::Text)])?;
    ensure!(
        good && last["exit"] == 0 && last.as_object().is_some_and(|object| object.len() == 2),
        "run --json ends with {last}"
    );
    let (good, lines) = lab(&["run", "--json", "--cpus", "1", "--exec", "hvdetect stop"])?;
    let last = lines.last().context("run --json printed nothing")?;
    ensure!(
        !good && last["exit"] == 1,
        "a command that fails: {last}, success {good}"
    );
    let (good, lines) = lab(&[
        "bench",
        "--json",
        "--cpus",
        "1",
        "nop",
        "cpuid",
        "warm-touch",
    ])?;
    ensure!(good && lines.len() == 8, "bench printed {lines:?}");
    for line in &lines {
        has(line, BENCH).context("bench --json")?;
        let fields = line.as_object().map_or(0, serde_json::Map::len);
        ensure!(fields == BENCH.len(), "{fields} fields in {line}");
    }
    let of = |workload: &str, hv: bool| {
        lines
            .iter()
            .find(|line| line["workload"] == workload && line["hv"] == hv)
            .with_context(|| format!("no line for {workload}, hv {hv}"))
    };
    ensure!(
        of("nop", false)?["instructions"] == of("nop", true)?["instructions"],
        "pure compute costs something: {lines:?}"
    );
    ensure!(
        of("warm-touch", true)?["flips"] == 0,
        "a warm pass flips pages: {lines:?}"
    );
    ensure!(
        of("cpuid", true)?["exits"]["cpuid"] == 1_000,
        "1,000 CPUID: {lines:?}"
    );
    Ok(())
}
