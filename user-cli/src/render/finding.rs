//! A finding in a few lines, and in full.

use crate::escape;
use crate::output::Paint;
use crate::record::{Record, Site};
use std::fmt::Write;

/// What happened, as a clause about actor and victim.
fn headline(record: &Record) -> String {
    let actor = site(&record.actor);
    let victim = site(&record.victim);
    match record.kind.as_str() {
        "unbacked-execution" => format!("ring {} ran code in no module at {victim}", record.cpl),
        "nonexec-section-execution" => format!("code ran in a data section, {victim}"),
        "discarded-section-execution" => format!("code ran in a discarded section, {victim}"),
        "remapped-execution" => format!("foreign frame behind {victim}"),
        "modified-code-execution" => format!("altered code ran at {victim}"),
        "user-page-execution" => format!("ring 0 ran a user page at {victim}"),
        "module-code-write" => format!("{actor} wrote to the code of {victim}"),
        "readonly-data-write" => format!("{actor} wrote to read-only data of {victim}"),
        "self-modifying-page" => format!("code wrote to its own page at {victim}"),
        "virtualization-attempt" => format!("{actor} tried to use VT-x"),
        "tamper" => format!("{actor} reached for hvdetect at {victim}"),
        _ => format!("{actor} at {victim}"),
    }
}

/// `ntoskrnl.exe!NtAddAtom+0x4`, `evil.sys+0x1234 (.text)`, or an address.
pub(crate) fn site(site: &Site) -> String {
    let address = site.address.as_deref().map(escape::text);
    let Some(module) = site.module.as_deref().map(escape::text) else {
        return address.unwrap_or_else(|| "an unknown address".to_owned());
    };
    let offset = site.offset.as_deref().map(escape::text);
    let offset = offset.unwrap_or_else(|| "?".to_owned());
    let mut out = match (&site.export, &site.export_offset) {
        (Some(export), Some(from)) if from != "0x0" => {
            format!("{module}!{}+{}", escape::text(export), escape::text(from))
        }
        (Some(export), _) => format!("{module}!{}", escape::text(export)),
        (None, _) => format!("{module}+{offset}"),
    };
    if let Some(section) = &site.section {
        let _ = write!(out, " ({})", escape::text(section));
    }
    out
}

fn spaced(hex: &str) -> String {
    let digits: Vec<char> = hex.chars().collect();
    let pairs: Vec<String> = digits.chunks(2).map(|p| p.iter().collect()).collect();
    escape::text(&pairs.join(" "))
}

/// A few lines, as `watch` prints them.
pub(crate) fn short(record: &Record, paint: Paint) -> String {
    let mut out = String::new();
    let kind = escape::text(&record.kind);
    let severity = paint.severity(&escape::text(&record.severity));
    // Writing to a String cannot fail; nor below.
    let _ = writeln!(
        out,
        "#{} {severity} {}  {}",
        record.seq,
        paint.bold(&kind),
        headline(record)
    );
    let mut detail = |text: String| {
        let _ = writeln!(out, "    {text}");
    };
    if record.returns.module.is_some() {
        detail(format!("called from {}", site(&record.returns)));
    } else if let Some(address) = &record.return_address {
        detail(format!("called from {}", escape::text(address)));
    }
    if let (Some(old), Some(new)) = (&record.old, &record.new) {
        detail(format!("{} -> {}", spaced(old), spaced(new)));
    }
    if let Some(image) = &record.earlier {
        detail(format!(
            "where {} was until {} ms before",
            escape::text(&image.name),
            image.before_ms
        ));
    }
    if let Some(image) = record.timeline.first() {
        detail(format!(
            "{} ms after {} was {}",
            image.before_ms,
            escape::text(&image.name),
            escape::text(&image.change)
        ));
    }
    let mut place = format!(
        "rip {}  gpa {}  core {}  cpl {}  cr3 {}  {}",
        escape::text(&record.rip),
        escape::text(&record.gpa),
        record.core,
        record.cpl,
        escape::text(&record.cr3),
        escape::text(&record.time)
    );
    if record.count > 1 {
        let _ = write!(place, "  {} times", record.count);
    }
    detail(paint.dim(&place));
    out
}

/// Everything that the record holds, one fact a line.
pub(crate) fn full(record: &Record, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} {} {}",
        paint.bold(&format!("Finding #{}", record.seq)),
        paint.severity(&escape::text(&record.severity)),
        paint.bold(&escape::text(&record.kind))
    );
    let _ = writeln!(out, "  {}", headline(record));
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "  {label:<16}{value}");
    };
    let mut text = |label: &str, value: Option<&str>| {
        if let Some(value) = value {
            line(label, &escape::text(value));
        }
    };
    text("time", Some(&record.time));
    text("ATT&CK", record.mitre.as_deref());
    text("events", Some(&record.count.to_string()));
    text("core", Some(&record.core.to_string()));
    text("privilege level", Some(&record.cpl.to_string()));
    text("rip", Some(&record.rip));
    text("linear address", record.gla.as_deref());
    text("guest-physical", Some(&record.gpa));
    text("cr3", Some(&record.cr3));
    text("rsp", record.rsp.as_deref());
    text("rflags", record.rflags.as_deref());
    text("process", record.process.map(|p| p.to_string()).as_deref());
    for (label, place) in [
        ("actor", &record.actor),
        ("victim", &record.victim),
        ("returns to", &record.returns),
    ] {
        if place.address.is_some() || place.module.is_some() {
            let none = if place.module.is_none() {
                " (in no module)"
            } else {
                ""
            };
            line(label, &format!("{}{none}", site(place)));
        }
    }
    if let Some(write) = &record.write {
        let where_ = format!("{} bytes at page offset {:#x}", write.length, write.offset);
        line("written", &where_);
    }
    if let Some(old) = &record.old {
        line("old", &spaced(old));
    }
    if let Some(new) = &record.new {
        line("new", &spaced(new));
    }
    if let Some(hash) = &record.sha256 {
        line("page's SHA-256", &escape::text(hash));
    }
    if !record.flags.is_empty() {
        line("flags", &escape::text(&record.flags.join(", ")));
    }
    if let Some(image) = &record.earlier {
        let what = format!(
            "{} at {}, {:#x} bytes, unloaded {} ms before",
            escape::text(&image.name),
            escape::text(&image.base),
            image.size,
            image.before_ms
        );
        line("once there", &what);
    }
    for image in &record.timeline {
        let what = format!(
            "{} ms before: {} {} at {}, {:#x} bytes",
            image.before_ms,
            escape::text(&image.name),
            escape::text(&image.change),
            escape::text(&image.base),
            image.size
        );
        line("timeline", &what);
    }
    if let Some(registers) = &record.registers {
        for row in registers.named().chunks(4) {
            let cells: Vec<String> = row
                .iter()
                .map(|(name, value)| format!("{name:>3} {:<18}", escape::text(value)))
                .collect();
            line("", cells.join(" ").trim_end());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{hook, unbacked};

    const PLAIN: Paint = Paint(false);

    #[test]
    fn findings_in_a_few_lines() {
        let text: String = [unbacked(), hook()]
            .iter()
            .map(|f| short(&Record::from(f), PLAIN))
            .collect();
        assert_eq!(text, include_str!("../snapshots/short.txt"));
    }

    #[test]
    fn findings_in_full() {
        let text: String = [unbacked(), hook()]
            .iter()
            .map(|f| full(&Record::from(f), PLAIN))
            .collect();
        assert_eq!(text, include_str!("../snapshots/full.txt"));
    }

    fn poison(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(s) => *s = "\u{1b}[31m".to_owned(),
            serde_json::Value::Array(a) => a.iter_mut().for_each(poison),
            serde_json::Value::Object(o) => o.values_mut().for_each(poison),
            _ => {}
        }
    }

    #[test]
    fn no_field_of_a_log_line_reaches_the_terminal_raw() {
        let mut json = serde_json::to_value(Record::from(&hook())).unwrap();
        poison(&mut json);
        let record: Record = serde_json::from_value(json).unwrap();
        let text = short(&record, PLAIN) + &full(&record, PLAIN);
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn colour_only_if_asked() {
        let record = Record::from(&unbacked());
        assert!(!short(&record, PLAIN).contains('\u{1b}'));
        assert!(short(&record, Paint(true)).contains("\u{1b}[1;31mcritical\u{1b}[0m"));
    }
}
