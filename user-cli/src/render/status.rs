//! The status, as JSON object and as text.

use crate::output::Paint;
use crate::record::SCHEMA;
use crate::render::exits;
use crate::time::rfc3339;
use detector::wire::{Features, Gaps, Notes, State, StatusReply, Vendor};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::Write;

/// The object of `status --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    schema: u32,
    state: String,
    vendor: &'static str,
    cores: u32,
    features: Vec<&'static str>,
    /// `none` while stopped, `full`, or `reduced`.
    coverage: &'static str,
    gaps: Vec<&'static str>,
    exits: Map<String, Value>,
    pages: Pages,
    tables: u64,
    tables_reserved: u64,
    table_bytes: u64,
    core_bytes: u64,
    shared_bytes: u64,
    invalidations: u64,
    kicks: u64,
    flips: u64,
    steps: u64,
    findings: u64,
    dropped: Dropped,
    accounts: Accounts,
    modules: u32,
    generation: u32,
    address_bits: u32,
    started: Option<String>,
    driver: String,
    /// What the start changed about the machine, and what it uses untested.
    notes: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Pages {
    writable: u64,
    executable: u64,
    stepping: u64,
    exempt: u64,
    hidden: u64,
}

#[derive(Debug, Serialize)]
struct Dropped {
    ring_full: u64,
    queue_full: u64,
    rate_limited: u64,
}

#[derive(Debug, Serialize)]
struct Accounts {
    produced: u64,
    delivered: u64,
    queued: u64,
    merged: u64,
    stale: u64,
    no_evidence: u64,
    balanced: bool,
}

const FEATURES: [(Features, &str, &str); 14] = [
    (
        Features::NESTED_PAGING,
        "nested-paging",
        "nested page tables",
    ),
    (Features::LEAF_2M, "leaf-2m", "2 MiB leaves"),
    (Features::LEAF_1G, "leaf-1g", "1 GiB leaves"),
    (Features::MBEC, "mbec", "user and kernel execution apart"),
    (Features::MTF, "mtf", "monitor trap flag"),
    (Features::VPID, "vpid", "tagged translations"),
    (
        Features::INVEPT_SINGLE,
        "invept-single",
        "single-context invalidation",
    ),
    (
        Features::ACCESSED_DIRTY,
        "accessed-dirty",
        "accessed and dirty bits",
    ),
    (Features::EXECUTE_ONLY, "execute-only", "execute-only pages"),
    (Features::UNRESTRICTED, "unrestricted", "unrestricted guest"),
    (
        Features::PREEMPTION_TIMER,
        "preemption-timer",
        "preemption timer",
    ),
    (Features::VIRTUAL_NMI, "virtual-nmi", "virtual NMIs"),
    (Features::NEXT_RIP, "next-rip", "next RIP saved"),
    (Features::DECODE_ASSISTS, "decode-assists", "decode assists"),
];

const GAPS: [(Gaps, &str, &str); 5] = [
    (
        Gaps::USER_PAGES,
        "user-pages",
        "no mode-based execution control: kernel execution of pages that user mode runs is not seen",
    ),
    (
        Gaps::TABLES_EXHAUSTED,
        "tables-exhausted",
        "nested tables ran out: some pages keep both rights",
    ),
    (
        Gaps::EXEMPT_PAGES,
        "exempt-pages",
        "some pages change too often and are exempt",
    ),
    (
        Gaps::CORE_MISSING,
        "core-missing",
        "a core is not monitored",
    ),
    (
        Gaps::REGISTRY_INCOMPLETE,
        "registry-incomplete",
        "the list of modules is not complete",
    ),
];

const NOTES: [(Notes, &str, &str); 2] = [
    (
        Notes::FIRMWARE_LOCKED,
        "firmware-locked",
        "the firmware had left VT-x unlocked (IA32_FEATURE_CONTROL): it was allowed and locked, \
         until the machine restarts",
    ),
    (
        Notes::GMET_UNTESTED,
        "gmet-untested",
        "GMET is used; untested on hardware (`hvdetect start --no-mbec` does without)",
    ),
];

impl Status {
    pub(crate) fn new(reply: &StatusReply, driver: [u16; 3]) -> Status {
        let vendor = Vendor::from_raw(reply.vendor);
        let state = State::from_raw(reply.state);
        let features = Features::from_bits_retain(reply.features);
        let gaps = Gaps::from_bits_retain(reply.gaps);
        let mut exits = Map::new();
        for (slot, count) in reply.exits.iter().enumerate() {
            if *count != 0 {
                exits.insert(exits::name(vendor, slot), (*count).into());
            }
        }
        if reply.exits_other != 0 {
            exits.insert("other".to_owned(), reply.exits_other.into());
        }
        let accounts = &reply.accounts;
        Status {
            schema: SCHEMA,
            state: match state {
                Some(State::Stopped) => "stopped".to_owned(),
                Some(State::Starting) => "starting".to_owned(),
                Some(State::Monitoring) => "monitoring".to_owned(),
                Some(State::Stopping) => "stopping".to_owned(),
                Some(State::Failed) => "failed".to_owned(),
                None => format!("unknown-{}", reply.state),
            },
            vendor: match vendor {
                Some(Vendor::Intel) => "intel",
                Some(Vendor::Amd) => "amd",
                Some(Vendor::Unknown) | None => "unknown",
            },
            cores: reply.cores,
            features: FEATURES
                .iter()
                .filter(|(bit, ..)| features.contains(*bit))
                .map(|(_, name, _)| *name)
                .collect(),
            coverage: if state != Some(State::Monitoring) {
                "none"
            } else if gaps.is_empty() {
                "full"
            } else {
                "reduced"
            },
            gaps: GAPS
                .iter()
                .filter(|(bit, ..)| gaps.contains(*bit))
                .map(|(_, name, _)| *name)
                .collect(),
            exits,
            pages: Pages {
                writable: reply.pages.writable,
                executable: reply.pages.executable,
                stepping: reply.pages.stepping,
                exempt: reply.pages.exempt,
                hidden: reply.pages.hidden,
            },
            tables: reply.tables,
            tables_reserved: reply.tables_reserved,
            table_bytes: reply.table_bytes,
            core_bytes: reply.core_bytes,
            shared_bytes: reply.shared_bytes,
            invalidations: reply.invalidations,
            kicks: reply.kicks,
            flips: reply.flips,
            steps: reply.steps,
            findings: accounts.findings,
            dropped: Dropped {
                ring_full: accounts.ring_full,
                queue_full: accounts.queue_full,
                rate_limited: accounts.rate_limited,
            },
            accounts: Accounts {
                produced: accounts.produced,
                delivered: accounts.delivered,
                queued: accounts.queued,
                merged: accounts.merged,
                stale: accounts.stale,
                no_evidence: accounts.no_evidence,
                balanced: accounts.balance(),
            },
            modules: reply.modules,
            generation: reply.generation,
            address_bits: reply.address_bits,
            started: (reply.started != 0).then(|| rfc3339(reply.started)),
            driver: format!("{}.{}.{}", driver[0], driver[1], driver[2]),
            notes: NOTES
                .iter()
                .filter(|(bit, ..)| Notes::from_bits_retain(reply.notes).contains(*bit))
                .map(|(_, name, _)| *name)
                .collect(),
        }
    }

    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        // No map key but strings and no value that can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people.
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut out = String::new();
        let mut line = |label: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{label:<15}{value}");
        };
        line("State", paint.bold(&self.state));
        if let Some(since) = &self.started {
            line("Since", since.clone());
        }
        line("Driver", self.driver.clone());
        line(
            "Processor",
            format!(
                "{}, {} cores, {} address bits",
                self.vendor, self.cores, self.address_bits
            ),
        );
        line("Abilities", self.abilities());
        for (_, _, text) in NOTES.iter().filter(|(_, n, _)| self.notes.contains(n)) {
            line("Note", (*text).to_owned());
        }
        line("Coverage", paint.bold(self.coverage));
        for (_, _, text) in GAPS.iter().filter(|(_, name, _)| self.gaps.contains(name)) {
            line("", (*text).to_owned());
        }
        line(
            "Pages",
            format!(
                "{} writable, {} executable, {} stepping, {} exempt, {} hidden",
                self.pages.writable,
                self.pages.executable,
                self.pages.stepping,
                self.pages.exempt,
                self.pages.hidden
            ),
        );
        line(
            "Tables",
            format!(
                "{} in use, {} in reserve, {} KiB",
                self.tables,
                self.tables_reserved,
                self.table_bytes / 1024
            ),
        );
        line(
            "Memory",
            format!(
                "{} KiB a core, {} KiB shared",
                self.core_bytes / 1024,
                self.shared_bytes / 1024
            ),
        );
        line(
            "Page changes",
            format!(
                "{} flips, {} steps, {} invalidations, {} kicks",
                self.flips, self.steps, self.invalidations, self.kicks
            ),
        );
        line(
            "Modules",
            format!("{} (generation {})", self.modules, self.generation),
        );
        line(
            "Findings",
            format!(
                "{} ({} not read yet); {} events: {} merged, {} stale, {} without evidence",
                self.findings,
                self.accounts.queued,
                self.accounts.produced,
                self.accounts.merged,
                self.accounts.stale,
                self.accounts.no_evidence
            ),
        );
        line(
            "Dropped",
            format!(
                "{} (a core's ring full), {} (too many unread), {} (too many at once){}",
                self.dropped.ring_full,
                self.dropped.queue_full,
                self.dropped.rate_limited,
                if self.accounts.balanced {
                    ""
                } else {
                    "; THE ACCOUNTS DO NOT BALANCE"
                }
            ),
        );
        self.exits_text(&mut out);
        out
    }

    fn exits_text(&self, out: &mut String) {
        let mut label = "Exits";
        for (name, count) in &self.exits {
            let count = count.as_u64().unwrap_or(0);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{label:<15}{name:<26}{count:>14}");
            label = "";
        }
    }

    fn abilities(&self) -> String {
        let text = |name: &&str| FEATURES.iter().find(|(_, n, _)| n == name);
        let texts: Vec<_> = self.features.iter().filter_map(text).collect();
        texts
            .iter()
            .map(|(.., t)| *t)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use detector::wire::Message;

    pub(crate) fn monitoring() -> StatusReply {
        let mut reply = StatusReply::zeroed();
        reply.state = State::Monitoring as u32;
        reply.vendor = Vendor::Intel as u32;
        reply.cores = 4;
        reply.address_bits = 39;
        reply.features = (Features::NESTED_PAGING | Features::MTF | Features::LEAF_2M).bits();
        reply.gaps = Gaps::USER_PAGES.bits();
        reply.exits[48] = 1234;
        reply.exits[10] = 7;
        reply.exits_other = 1;
        reply.pages.executable = 2510;
        reply.pages.writable = 63_000;
        reply.tables = 30;
        reply.tables_reserved = 100;
        reply.table_bytes = 130 * 4096;
        reply.core_bytes = 100 << 10;
        reply.shared_bytes = 1 << 20;
        reply.flips = 5;
        reply.modules = 3;
        reply.generation = 9;
        reply.started = 133_800_000_000_000_000;
        reply.notes = Notes::FIRMWARE_LOCKED.bits();
        reply.accounts.produced = 25;
        reply.accounts.findings = 3;
        reply.accounts.delivered = 2;
        reply.accounts.queued = 1;
        reply.accounts.merged = 4;
        reply.accounts.ring_full = 5;
        reply.accounts.rate_limited = 6;
        reply.accounts.stale = 7;
        reply
    }

    #[test]
    fn status_is_frozen() {
        let status = Status::new(&monitoring(), [0, 1, 0]);
        assert_eq!(
            status.json(),
            include_str!("../snapshots/status.json").trim_end()
        );
        assert_eq!(
            status.text(Paint(false)),
            include_str!("../snapshots/status.txt")
        );
    }

    #[test]
    fn a_trap_that_nobody_has_tested_is_said_so() {
        let mut reply = monitoring();
        reply.vendor = Vendor::Amd as u32;
        reply.features = (Features::NESTED_PAGING | Features::MBEC).bits();
        reply.gaps = 0;
        for (notes, said) in [(Notes::empty(), false), (Notes::GMET_UNTESTED, true)] {
            reply.notes = notes.bits();
            let status = Status::new(&reply, [0; 3]);
            let object: Value = serde_json::from_str(&status.json()).unwrap();
            let names: &[&str] = if said { &["gmet-untested"] } else { &[] };
            assert_eq!(object["notes"], serde_json::json!(names));
            assert_eq!(object["coverage"], "full", "a note is no gap");
            let text = status.text(Paint(false));
            assert_eq!(text.contains("GMET is used; untested on hardware"), said);
        }
    }

    #[test]
    fn coverage_is_none_full_or_reduced() {
        let mut reply = monitoring();
        let coverage = |reply: &StatusReply| Status::new(reply, [0; 3]).coverage;
        assert_eq!(coverage(&reply), "reduced");
        reply.gaps = 0;
        assert_eq!(coverage(&reply), "full");
        reply.gaps = 1 << 60;
        assert_eq!(
            coverage(&reply),
            "reduced",
            "a gap that only the driver knows"
        );
        reply.state = State::Stopped as u32;
        assert_eq!(coverage(&reply), "none");
    }

    #[test]
    fn accounts_that_do_not_balance_are_said_so() {
        let mut reply = monitoring();
        reply.accounts.merged += 1;
        let text = Status::new(&reply, [0; 3]).text(Paint(false));
        assert!(text.contains("DO NOT BALANCE"));
    }
}
