//! Findings as `hvdetect watch --json` prints them, and what a specimen says
//! must be found. Pure.

use crate::machine::{Emulator, Vendor};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;

/// Where code lies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Location {
    /// Module, absent if it is none's.
    pub(crate) module: Option<String>,
    /// Section.
    pub(crate) section: Option<String>,
    /// Offset into the module.
    pub(crate) offset: Option<String>,
    /// Nearest export (victims only).
    pub(crate) export: Option<String>,
}

/// One finding.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Finding {
    /// Number.
    pub(crate) seq: u64,
    /// Kind, by its name on the wire.
    pub(crate) kind: String,
    /// `critical`, `high`, `medium` or `info`.
    pub(crate) severity: String,
    /// Processor.
    pub(crate) core: u32,
    /// Instruction pointer, hexadecimal.
    pub(crate) rip: Option<String>,
    /// Linear address, hexadecimal.
    pub(crate) gla: Option<String>,
    /// Physical address, hexadecimal.
    pub(crate) gpa: Option<String>,
    /// Who did it.
    pub(crate) actor: Option<Location>,
    /// To whom.
    pub(crate) victim: Option<Location>,
    /// Where the actor would return to.
    pub(crate) return_address: Option<String>,
    /// Bytes before.
    pub(crate) old: Option<String>,
    /// Bytes after.
    pub(crate) new: Option<String>,
    /// Hash of the page.
    pub(crate) sha256: Option<String>,
    /// How often.
    pub(crate) count: u64,
}

impl Finding {
    /// Reads JSON Lines; anything that is no finding is an error.
    pub(crate) fn parse_lines(text: &str) -> Result<Vec<Self>> {
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let finding: Self =
                    serde_json::from_str(line).with_context(|| format!("finding: {line}"))?;
                if finding.kind.is_empty() {
                    bail!("a finding without a kind: {line}");
                }
                Ok(finding)
            })
            .collect()
    }

    /// The physical frame, if the finding has one.
    pub(crate) fn frame(&self) -> Option<u64> {
        Some(number(self.gpa.as_deref()?)? / 4096)
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let place = |location: Option<&Location>| {
            location.map_or_else(
                || "no module".to_owned(),
                |place| {
                    let mut text = place.module.clone().unwrap_or("no module".to_owned());
                    if let Some(export) = &place.export {
                        text = format!("{text}!{export}");
                    }
                    for part in [&place.section, &place.offset].into_iter().flatten() {
                        text = format!("{text} {part}");
                    }
                    text
                },
            )
        };
        let mut text = format!(
            "#{} {} ({}) by {} at {}",
            self.seq,
            self.kind,
            self.severity,
            place(self.actor.as_ref()),
            self.rip.as_deref().unwrap_or("?")
        );
        if let Some(victim) = &self.victim {
            text = format!("{text}, victim {}", place(Some(victim)));
        }
        if self.count > 1 {
            text = format!("{text}, {} times", self.count);
        }
        text
    }
}

/// `0x…` or plain hexadecimal digits.
pub(crate) fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// What a specimen's `expect.json` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expectation {
    /// Name of its service.
    pub(crate) service: String,
    /// Processors on which it makes sense, if not on all.
    #[serde(default)]
    pub(crate) only: Option<Vendor>,
    /// Emulators that do not give what it needs (`machine/offers.rs`).
    #[serde(default)]
    pub(crate) not_on: Vec<Emulator>,
    /// Findings that must come; no others may.
    #[serde(default)]
    pub(crate) kinds: Vec<ExpectedKind>,
    /// A benign control: nothing may be found.
    #[serde(default)]
    pub(crate) silent: bool,
    /// It runs already when monitoring starts.
    #[serde(default)]
    pub(crate) before_start: bool,
    /// What its driver must have said on the console by then (`specimen …`).
    #[serde(default)]
    pub(crate) says: Vec<String>,
    /// What it says below the hypervisor only.
    #[serde(default)]
    pub(crate) says_below: Vec<String>,
    /// How long it is left running, in milliseconds.
    #[serde(default)]
    pub(crate) run_ms: u64,
    /// A sentence for people.
    #[serde(default)]
    pub(crate) about: String,
}

/// One kind of finding that must come.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedKind {
    /// Kind, by its name on the wire.
    pub(crate) kind: String,
    /// Module that acts: a name, `null` for "in no module", absent for any.
    #[serde(default)]
    pub(crate) actor_module: Whose,
    /// Module that is acted upon, likewise.
    #[serde(default)]
    pub(crate) victim_module: Whose,
    /// Nearest export of the victim.
    #[serde(default)]
    pub(crate) victim_export: Option<String>,
    /// Least number of such findings.
    #[serde(default = "one")]
    pub(crate) min: usize,
    /// Greatest number.
    #[serde(default)]
    pub(crate) max: Option<usize>,
    /// Least number of events in all of them.
    #[serde(default)]
    pub(crate) min_events: u64,
    /// How the instruction pointer relates to what the specimen announced.
    #[serde(default)]
    pub(crate) rip_is: Option<RipIs>,
}

/// How many findings are of this kind, and how many events are in them.
fn count(kind: &ExpectedKind, findings: &[Finding], entries: &[u64]) -> (usize, u64) {
    let fit = findings.iter().filter(|f| kind.matches(f, entries));
    fit.fold((0, 0), |(number, events), finding| {
        (number + 1, events + finding.count)
    })
}

/// How an instruction pointer relates to the code that a specimen announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RipIs {
    /// It is the entry point.
    Entry,
    /// It is in the entry point's page.
    Page,
}

/// The entry points that specimens announced on the console
/// (`specimen NAME: entry=0x… frame=0x…`).
pub(crate) fn announced(console: &str) -> Vec<u64> {
    console
        .lines()
        .filter(|line| line.contains("specimen "))
        .filter_map(|line| line.split_once("entry=")?.1.split_whitespace().next())
        .filter_map(number)
        .collect()
}

const fn one() -> usize {
    1
}

/// Whose code: anybody's if the key is absent, nobody's if it is `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Option<String>")]
pub(crate) enum Whose {
    /// Not compared.
    #[default]
    Any,
    /// In no module.
    Nobody,
    /// In the module of this name.
    Module(String),
}

impl From<Option<String>> for Whose {
    fn from(name: Option<String>) -> Self {
        name.map_or(Self::Nobody, Self::Module)
    }
}

impl Whose {
    fn matches(&self, place: Option<&Location>) -> bool {
        let actual = place.and_then(|place| place.module.as_deref());
        match self {
            Self::Any => true,
            Self::Nobody => actual.is_none(),
            Self::Module(name) => actual.is_some_and(|actual| actual.eq_ignore_ascii_case(name)),
        }
    }
}

impl Expectation {
    /// Reads a specimen's file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let expectation: Self =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if expectation.silent != expectation.kinds.is_empty() {
            bail!(
                "{}: either `silent` or `kinds` must say something",
                path.display()
            );
        }
        Ok(expectation)
    }

    /// Whether everything that must be found has been found already.
    pub(crate) fn satisfied(&self, findings: &[Finding], entries: &[u64]) -> bool {
        self.kinds.iter().all(|kind| {
            let (number, events) = count(kind, findings, entries);
            number >= kind.min && events >= kind.min_events
        })
    }

    /// Compares; the error names every difference.
    pub(crate) fn check(&self, findings: &[Finding], entries: &[u64]) -> Result<()> {
        let mut wrong = Vec::new();
        for kind in &self.kinds {
            let (number, events) = count(kind, findings, entries);
            if events < kind.min_events {
                wrong.push(format!(
                    "{events} events of {}, expected {} or more",
                    kind.describe(),
                    kind.min_events
                ));
            }
            if number < kind.min || kind.max.is_some_and(|max| number > max) {
                wrong.push(format!(
                    "{} times {}, expected {}{}",
                    number,
                    kind.describe(),
                    kind.min,
                    kind.max
                        .map_or_else(|| " or more".to_owned(), |max| format!(" to {max}"))
                ));
            }
        }
        for finding in findings {
            if !self.kinds.iter().any(|kind| kind.matches(finding, entries)) {
                wrong.push(format!("not expected: {}", finding.describe()));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let all: Vec<String> = findings.iter().map(Finding::describe).collect();
        bail!(
            "{}\nall findings:\n{}",
            wrong.join("\n"),
            if all.is_empty() {
                "none".to_owned()
            } else {
                all.join("\n")
            }
        )
    }
}

impl ExpectedKind {
    fn matches(&self, finding: &Finding, entries: &[u64]) -> bool {
        let rip = finding.rip.as_deref().and_then(number);
        let at = match (self.rip_is, rip) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(RipIs::Entry), Some(rip)) => entries.contains(&rip),
            (Some(RipIs::Page), Some(rip)) => entries.iter().any(|&entry| entry >> 12 == rip >> 12),
        };
        finding.kind == self.kind
            && self.actor_module.matches(finding.actor.as_ref())
            && self.victim_module.matches(finding.victim.as_ref())
            && self.victim_export.as_ref().is_none_or(|export| {
                finding
                    .victim
                    .as_ref()
                    .is_some_and(|victim| victim.export.as_ref() == Some(export))
            })
            && at
    }

    fn describe(&self) -> String {
        let mut text = self.kind.clone();
        for (what, module) in [("by", &self.actor_module), ("upon", &self.victim_module)] {
            match module {
                Whose::Any => {}
                Whose::Nobody => text = format!("{text} {what} no module"),
                Whose::Module(name) => text = format!("{text} {what} {name}"),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expectation(text: &str) -> Expectation {
        serde_json::from_str(text).expect("an expectation")
    }

    fn findings(text: &str) -> Vec<Finding> {
        Finding::parse_lines(text).expect("findings")
    }

    const SHELLCODE: &str = r#"{"schema":1,"seq":1,"kind":"unbacked-execution","severity":"critical","rip":"0xffff800012345000","gla":"0xffff800012345000","gpa":"0x345000","actor":{"module":null},"victim":null,"count":1}"#;
    const CONSOLE: &str =
        "[0 0] MiniNT\n[1 0] specimen pool-shellcode: entry=0xffff800012345000 frame=0x345000\n";
    const HOOK: &str = r#"{"seq":2,"kind":"module-code-write","rip":"0xfffff80000001234","gla":"0xfffff80540001000","actor":{"module":"inline_hook.sys"},"victim":{"module":"ntoskrnl.exe","section":".text","export":"ZwClose"},"count":3}"#;

    #[test]
    fn what_is_expected_is_accepted_and_nothing_else() {
        let expected = expectation(
            r#"{"service":"pool_shellcode","kinds":[{"kind":"unbacked-execution","actor_module":null,"rip_is":"entry","max":1}]}"#,
        );
        let entry = announced(CONSOLE);
        assert_eq!(entry, [0xffff_8000_1234_5000]);
        assert!(expected.check(&findings(SHELLCODE), &entry).is_ok());
        assert!(expected.satisfied(&findings(SHELLCODE), &entry));
        assert!(!expected.satisfied(&[], &entry));
        assert!(expected.check(&[], &entry).is_err());
        assert!(expected.check(&findings(SHELLCODE), &[]).is_err());
        assert!(
            expected
                .check(&findings(SHELLCODE), &[entry[0] + 1])
                .is_err()
        );
        let both = findings(&format!("{SHELLCODE}\n{HOOK}\n"));
        let text = format!(
            "{:#}",
            expected.check(&both, &entry).expect_err("a stranger")
        );
        assert!(
            text.contains("not expected: #2 module-code-write"),
            "{text}"
        );
        let twice = findings(&format!("{SHELLCODE}\n{SHELLCODE}"));
        assert!(expected.check(&twice, &entry).is_err());
    }

    #[test]
    fn modules_and_exports_are_compared() {
        let of = |victim: &str| {
            expectation(&format!(
                r#"{{"service":"x","kinds":[{{"kind":"module-code-write","actor_module":"INLINE_HOOK.SYS",{victim}}}]}}"#
            ))
            .check(&findings(HOOK), &[])
            .is_ok()
        };
        assert!(of(r#""victim_module":"ntoskrnl.exe""#));
        assert!(of(r#""victim_export":"ZwClose""#));
        assert!(!of(r#""victim_module":"hal.dll""#));
        assert!(!of(r#""victim_module":null"#));
        assert!(!of(r#""victim_export":"ZwOpen""#));
    }

    #[test]
    fn a_silent_specimen_must_be_silent() {
        let expected = expectation(r#"{"service":"churn","silent":true}"#);
        assert!(expected.check(&[], &[]).is_ok());
        assert!(expected.check(&findings(HOOK), &[]).is_err());
    }

    #[test]
    fn a_misspelt_expectation_is_refused() {
        assert!(serde_json::from_str::<Expectation>(r#"{"service":"x","slient":true}"#).is_err());
    }

    #[test]
    fn what_is_no_finding_is_an_error() {
        assert!(Finding::parse_lines("hello").is_err());
        assert!(Finding::parse_lines("{}").is_err());
        assert_eq!(findings(SHELLCODE)[0].frame(), Some(0x345));
    }
}
