//! The same attack found on both vendors' processors: the findings are equal field
//! by field, but for what two machines cannot have in common.
//!
//! That is the time, how often a specimen had its turn, and general registers: what
//! CPUID has answered stays in them, and addresses of memory that the system has
//! given out meanwhile.

use super::{Stage, specimens};
use crate::images;
use crate::machine::{Model, Options};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Fields that tell of the moment or the machine.
const MAY_DIFFER: [&str; 5] = ["time", "before_ms", "tsc", "count", "registers"];

/// Which frame the system gives out depends on what else went on at the moment, so two
/// runs may differ by chance; what is the vendor's differs each time.
const TRIES: u32 = 4;

pub(super) fn agree(stage: &mut Stage<'_>) -> Result<()> {
    for name in images::specimen_names()? {
        for last in (0..TRIES).rev() {
            let differences = compare(stage, &name)?;
            if differences.is_empty() {
                break;
            }
            ensure!(last > 0, "{name}: {}", differences.join("; "));
        }
    }
    Ok(())
}

/// One specimen on either vendor's processor: what differs.
fn compare(stage: &mut Stage<'_>, name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for model in [Model::TIGERLAKE, Model::RYZEN] {
        if !specimens::suits(name, model.vendor, model.emulator)? {
            continue;
        }
        stage.options = Options {
            cpus: 1,
            ..Options::of(model)
        };
        let text = specimens::attack(stage, name, &["start"])
            .with_context(|| format!("{name} on {}", model.name))?;
        found.push(comparable(&text).with_context(|| name.to_owned())?);
    }
    Ok(match &found[..] {
        [intel, amd] => differences(intel, amd),
        _ => Vec::new(),
    })
}

/// Findings, JSON lines, without what may differ.
fn comparable(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| {
            let mut finding = serde_json::from_str(line).context("a finding")?;
            strip(&mut finding);
            Ok(finding)
        })
        .collect()
}

/// Takes out what may differ, at any depth.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !MAY_DIFFER.contains(&name.as_str()));
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

/// What differs between two lists of findings, in words.
fn differences(one: &[Value], other: &[Value]) -> Vec<String> {
    if one.len() != other.len() {
        return vec![format!("{} findings and {}", one.len(), other.len())];
    }
    let fields = |finding: &Value| finding.as_object().cloned().unwrap_or_default();
    one.iter()
        .zip(other)
        .flat_map(|(one, other)| {
            let (one, other) = (fields(one), fields(other));
            let names: std::collections::BTreeSet<String> =
                one.keys().chain(other.keys()).cloned().collect();
            names
                .into_iter()
                .filter(|name| one.get(name) != other.get(name))
                .map(|name| format!("{name}: {:?} and {:?}", one.get(&name), other.get(&name)))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"seq":1,"kind":"k","time":"t","tsc":5,"count":2,
        "registers":{"rax":"0x1"},"timeline":[2]}"#;

    #[test]
    fn only_the_moment_may_differ() {
        let line = LINE.lines().map(str::trim).collect::<String>();
        let one = comparable(&line).unwrap();
        let later = line.replace("\"tsc\":5", "\"tsc\":6").replace("0x1", "0x7");
        assert_eq!(differences(&one, &comparable(&later).unwrap()), [""; 0]);
        for (from, to) in [("\"k\"", "\"j\""), ("[2]", "[3]"), ("\"seq\":1,", "")] {
            let other = comparable(&line.replace(from, to)).unwrap();
            assert_eq!(differences(&one, &other).len(), 1, "{from}");
        }
        assert_eq!(differences(&one, &[]), ["1 findings and 0"]);
    }
}
