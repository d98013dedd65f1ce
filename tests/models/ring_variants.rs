//! The ring and the evidence pages with a mistake each, made from the genuine
//! sources at build time (see `build.rs`).

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Name, file (0 ring, 1 evidence), text, replacement.
const VARIANTS: [(&str, usize, &str, &str); 12] = [
    (
        "event_after_the_position",
        0,
        "        let event = make();\n",
        "        let event = make();\n        self.head.store(head.wrapping_add(1), Ordering::Release);\n",
    ),
    (
        "relaxed_position",
        0,
        "self.head.store(next, Ordering::Release);",
        "self.head.store(next, Ordering::Relaxed);",
    ),
    (
        "relaxed_tail",
        0,
        "self.tail.store(tail.wrapping_add(1), Ordering::Release);",
        "self.tail.store(tail.wrapping_add(1), Ordering::Relaxed);",
    ),
    (
        "loss_is_not_counted",
        0,
        "            self.lost.fetch_add(1, Ordering::Release);\n",
        "",
    ),
    (
        "full_ring_is_overwritten",
        0,
        "if head.wrapping_sub(tail) >= N as u64 {",
        "if head.wrapping_sub(tail) > N as u64 {",
    ),
    (
        "count_is_not_closed",
        0,
        "repeats.swap(CLOSED, Ordering::AcqRel);",
        "repeats.load(Ordering::Acquire);",
    ),
    (
        "count_is_read_early",
        0,
        "repeats.swap(CLOSED, Ordering::AcqRel);",
        "repeats.load(Ordering::Acquire);\n        repeats.store(CLOSED, Ordering::Release);",
    ),
    (
        "count_is_not_reset",
        0,
        "        repeats.store(0, Ordering::Relaxed);\n",
        "        let _ = repeats;\n",
    ),
    (
        "repeat_wins_over_the_reader",
        0,
        "        repeats
            .compare_exchange(seen, next, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()",
        "        repeats.store(next, Ordering::Release);\n        true",
    ),
    (
        "page_is_freed_early",
        1,
        "        // SAFETY: a filled page is the reader's",
        "        state.store(FREE, Ordering::Release);\n        // SAFETY: a filled page is the reader's",
    ),
    (
        "relaxed_free",
        1,
        "        state.store(FREE, Ordering::Release);\n        result",
        "        state.store(FREE, Ordering::Relaxed);\n        result",
    ),
    (
        "page_is_claimed_twice",
        1,
        "                .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()",
        "                .load(Ordering::Acquire) == FREE",
    ),
];

/// Writes all variants, each a module with `ring`, `evidence` and `scenarios`.
pub(crate) fn write(root: &Path, out: &Path) {
    let read = |path: &str| {
        let path = root.join(path);
        println!("cargo::rerun-if-changed={}", path.display());
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Inner documentation cannot be included.
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("//!"))
            .collect();
        lines.join("\n")
    };
    println!("cargo::rerun-if-changed=ring_variants.rs");
    let genuine = [read("driver/src/ring.rs"), read("driver/src/evidence.rs")];
    let scenarios = read("tests/models/tests/ring_scenarios.rs");
    let mut all = String::new();
    for (name, file, old, new) in VARIANTS {
        let mut sources = genuine.clone();
        let times = sources[file].matches(old).count();
        assert_eq!(times, 1, "{name}: the text of this mistake has changed");
        sources[file] = sources[file].replace(old, new);
        let [ring, evidence] = sources;
        // Writing to a String cannot fail.
        let _ = write!(
            all,
            "#[allow(dead_code, unused_variables, clippy::all, clippy::pedantic)]\n\
             pub(crate) mod {name} {{\n\
             pub(crate) use super::super::sync;\n\
             mod ring {{\n{ring}\n}}\nmod evidence {{\n{evidence}\n}}\n\
             pub(crate) mod scenarios {{\n{}\n}}\n}}\n",
            scenarios.replace("pub(super) fn", "pub(crate) fn")
        );
    }
    fs::write(out.join("ring_variants.rs"), all).expect("OUT_DIR can be written");
}
