//! What root mode is made of, read from the produced driver file: no import, no
//! panic, no allocator, no vector state of the guest's, a bounded stack.
//! (`docs/src/design.md`; `hv_core::vmx::entry` for the stubs.)

use super::Stage;
use crate::code::{Function, Image, Reach, check_stub};
use anyhow::{Context, Result, bail, ensure};

/// Symbols of `hv_core::vmx::entry` that stand inside its stubs.
const LABELS: [&str; 4] = [
    "hvdetect_resume_window",
    "hvdetect_resume_window_end",
    "hvdetect_leave_window",
    "hvdetect_leave_window_end",
];

/// Where the processor enters root mode.
const STUBS: [&str; 4] = [
    "hvdetect_vmx_exit",
    "hvdetect_svm_enter",
    "hvdetect_root_nmi_stub",
    "hvdetect_exception_stubs",
];

/// Give root mode's stack up: they set RSP and never return.
const NEW_STACK: [&str; 2] = [
    "hvdetect_vmx_enter_after_fault",
    "hvdetect_svm_enter_after_fault",
];

/// Never return to the stub that calls them.
const NEVER_RETURN: [&str; 4] = [
    NEW_STACK[0],
    NEW_STACK[1],
    "hvdetect_vmx_resume_failed",
    "hvdetect_root_failed",
];

/// Methods that root mode calls through tables which were filled before the
/// launch, by the names of trait and method.
const METHODS: [(&str, &str); 10] = [
    ("hv_core::monitor::Monitor", "role"),
    ("hv_core::monitor::Monitor", "on_fetch"),
    ("hv_core::monitor::Monitor", "on_written"),
    ("hv_core::monitor::Monitor", "on_virtualization"),
    ("hv_core::monitor::Monitor", "receive"),
    ("hv_core::monitor::Monitor", "commit"),
    ("hv_core::monitor::Monitor", "forgotten"),
    ("hv_core::monitor::Guest", "read_page"),
    ("hv_core::monitor::Guest", "translate"),
    ("hv_core::monitor::Guest", "read_u64"),
];

/// Who calls through a pointer, by the beginning of its name. The targets are
/// [`METHODS`], and closures, whose tables their callers name and which are
/// followed there.
const INDIRECT: [&str; 5] = [
    // The monitor: `role`, `on_written`, `on_fetch`, and the guest's memory.
    "hv_core::violation::",
    // The monitor: `on_virtualization`.
    "hv_core::exit::virtualization",
    // The monitor: `receive`, `commit`, `forgotten`.
    "hv_core::hypercall::answer",
    // The guest's memory, and the closure of `forgotten`.
    "<hvdetect_driver::monitor::RootMonitor as hv_core::monitor::Monitor>::",
    // Closures of the monitor's that read the guest's memory.
    "<hvdetect_driver::evidence::States",
];

/// Parts of names that root mode must not reach.
const FORBIDDEN: [&str; 12] = [
    "core::panicking",
    "rust_begin_unwind",
    "begin_panic",
    "hvdetect_driver::panic",
    "unwrap_failed",
    "expect_failed",
    "slice_index_fail",
    "handle_alloc_error",
    "__rust_alloc",
    "__rust_realloc",
    "alloc::",
    "__chkstk",
];

/// Half of `hv_core::percpu::STACK_BYTES`.
const STACK_LIMIT: u32 = 16 * 1024;

pub(super) fn keeps_its_rules(stage: &mut Stage<'_>) -> Result<()> {
    if stage.images().directory().ends_with("debug") {
        println!("  root mode: assertions bring panics; judged as shipped only");
        return Ok(());
    }
    let path = stage.images().driver.as_ref().context("no driver built")?;
    let image = Image::read(path, &LABELS)?;
    let roots = roots(&image)?;
    let reach = Reach::from(&image, &roots, &[]);
    let mut wrong = judge(&reach);
    for name in STUBS {
        wrong.extend(check_stub(&image, named(&image, name)?, &NEVER_RETURN));
    }
    let mut deepest = (0, Vec::new());
    for root in &roots {
        match reach.deepest(root, &NEW_STACK) {
            Ok(found) if found.0 > deepest.0 => deepest = found,
            Ok(_) => {}
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    if deepest.0 >= STACK_LIMIT {
        wrong.push(format!("the stack can grow to {} bytes", deepest.0));
    }
    println!(
        "  root mode: {} functions; deepest stack {} bytes:\n      {}",
        reach.each().count(),
        deepest.0,
        deepest.1.join("\n      -> ")
    );
    if !wrong.is_empty() {
        bail!("{} faults:\n{}", wrong.len(), wrong.join("\n"));
    }
    // What runs as the guest breaks these rules, and must be seen to: else this
    // case sees nothing.
    let guest = judge(&Reach::from(
        &image,
        &[named(&image, "FxDriverEntry")?],
        &[],
    ));
    for what in ["calls the import", "panicking", "alloc::"] {
        ensure!(
            guest.iter().any(|text| text.contains(what)),
            "the driver's own entry shows no \"{what}\": this case is blind"
        );
    }
    Ok(())
}

fn named<'a>(image: &'a Image, name: &str) -> Result<&'a Function> {
    image
        .named(name)
        .with_context(|| format!("no {name} in the PDB"))
}

/// All that root mode begins with.
fn roots(image: &Image) -> Result<Vec<&Function>> {
    let mut roots = Vec::new();
    for name in STUBS.iter().chain(&NEW_STACK) {
        roots.push(named(image, name)?);
    }
    for (of, method) in METHODS {
        let end = format!(" as {of}>::{method}");
        let default = format!("{of}::{method}");
        let before = roots.len();
        roots.extend(image.functions().filter(|function| {
            let is = |name: &String| name.ends_with(&end) || *name == default;
            function.names.iter().any(is)
        }));
        if roots.len() == before {
            bail!("no implementation of {of}::{method} in the PDB");
        }
    }
    Ok(roots)
}

/// What the functions do that root mode must not.
fn judge(reach: &Reach<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (function, facts) in reach.each() {
        let mut complain = |what: String| {
            wrong.push(format!("{what}:\n         {}", reach.chain(function)));
        };
        for import in &facts.imports {
            complain(format!("calls the import {import}"));
        }
        let forbidden = |name: &&String| FORBIDDEN.iter().any(|part| name.contains(part));
        if let Some(name) = function.names.iter().find(forbidden) {
            complain(format!("{name} can be reached"));
        }
        for text in &facts.wide {
            complain(format!("uses x87, MMX, AVX: {text}"));
        }
        let listed = INDIRECT
            .iter()
            .any(|name| function.name().starts_with(name));
        for text in facts.indirect.iter().filter(|_| !listed) {
            complain(format!("calls through a pointer, unlisted: {text}"));
        }
    }
    wrong
}
