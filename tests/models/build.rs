//! Takes genuine sources of the product into the models, and makes the broken
//! variants that prove the models able to fail.
//!
//! Three words of a genuine source are replaced: its atomics and its spin hint
//! become the model's, `crate` becomes the module that stands for its crate, and
//! `const fn` becomes `fn` (loom's atomics are made at run time). Nothing is
//! copied into the repository, so a model cannot fall behind its subject. A
//! variant replaces one more piece of text and must find it exactly once: a
//! change of the source that moves it is noticed here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Genuine sources: module name, path from the workspace's root.
const GENUINE: [(&str, &str); 2] = [
    ("shootdown", "hv-core/src/shootdown.rs"),
    ("transition", "hv-core/src/transition.rs"),
];

/// The model's own modules, which a variant has copies of.
const MODEL: [&str; 10] = [
    "apic",
    "backend",
    "counters",
    "exits",
    "guest",
    "hypervisor",
    "instr",
    "percpu",
    "scenarios",
    "seeded",
];

/// One mistake.
struct Variant {
    name: &'static str,
    /// Module, text, replacement.
    changes: &'static [(&'static str, &'static str, &'static str)],
}

include!("variants.rs");

mod ring_variants;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=variants.rs");
    let read = |path: &Path| {
        println!("cargo::rerun-if-changed={}", path.display());
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        without_essay(&text)
    };
    ring_variants::write(&here.join("../.."), &out);
    let mut modules: Vec<(&str, String)> = Vec::new();
    for (name, path) in GENUINE {
        let text = adapt(&read(&here.join("../..").join(path)));
        fs::write(out.join(format!("{name}.rs")), &text).expect("OUT_DIR can be written");
        modules.push((name, text));
    }
    for name in MODEL {
        let path = here.join("src/revocation").join(format!("{name}.rs"));
        modules.push((name, read(&path)));
    }
    let mut all = String::new();
    for variant in VARIANTS {
        all += &copy(variant, &modules);
    }
    fs::write(out.join("variants.rs"), all).expect("OUT_DIR can be written");
}

/// Inner documentation cannot be included; unit tests run where they are at home,
/// outside a model.
fn without_essay(text: &str) -> String {
    let genuine = text.split("\n#[cfg(test)]\nmod tests").next();
    let lines: Vec<_> = genuine
        .unwrap_or(text)
        .lines()
        .filter(|line| !line.starts_with("//!"))
        .collect();
    lines.join("\n")
}

fn adapt(text: &str) -> String {
    text.replace("crate::", "crate::revocation::")
        .replace("core::sync::atomic", "crate::atomics")
        .replace("core::hint::spin_loop", "crate::revocation::instr::pause")
        .replace("const fn", "fn")
}

/// All modules with the variant's mistake. A mistake whose text is not there
/// exactly once becomes a variant that explores nothing, so that its test fails.
fn copy(variant: &Variant, modules: &[(&str, String)]) -> String {
    let mut text = format!("pub mod {} {{\n", variant.name);
    for (module, source) in modules {
        let mut source = source.clone();
        for (_, old, new) in variant.changes.iter().filter(|change| change.0 == *module) {
            let times = source.matches(old).count();
            if times != 1 {
                println!(
                    "cargo::warning={}: found {times} times in {module}: {old:?}",
                    variant.name
                );
                return format!(
                    "pub mod {} {{ pub mod scenarios {{\n\
                     pub use crate::revocation::scenarios::*;\n\
                     pub fn explore(_: &'static Scenario) {{}}\n}} }}\n",
                    variant.name
                );
            }
            source = source.replace(old, new);
        }
        let own = format!("crate::variants::{}::", variant.name);
        let source = source.replace("crate::revocation::", &own);
        writeln!(text, "pub mod {module} {{\n{source}\n}}").expect("a string takes all");
    }
    text + "}\n"
}
