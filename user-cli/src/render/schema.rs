//! The published schemas (`schema/*.json`) describe what is printed.
//!
//! A validator for the few keywords that they use, so that schema and output
//! cannot drift apart; an unknown keyword fails the test.

use crate::record::Record;
use crate::record::tests::{hook, unbacked};
use crate::render::status::Status;
use crate::render::status::tests::monitoring;
use serde_json::Value;

fn check(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{at}: {why}: {value}"));
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let good = match keyword.as_str() {
            "$schema" | "title" | "description" | "examples" | "format" => true,
            "type" => rule == kind || rule.as_array().is_some_and(|a| a.contains(&kind.into())),
            "const" => rule == value,
            "enum" => rule.as_array().is_some_and(|a| a.contains(value)),
            "minimum" => value.is_null() || value.as_u64() >= rule.as_u64(),
            "maximum" => value.is_null() || value.as_u64() <= rule.as_u64(),
            "pattern" => value.is_null() || matches(rule.as_str(), value.as_str()),
            "required" => rule.as_array().is_some_and(|names| {
                let has = |name: &Value| value.get(name.as_str().unwrap_or("")).is_some();
                value.is_null() || names.iter().all(has)
            }),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(rule, item, &format!("{at}[]"))?;
                }
                true
            }
            "additionalProperties" => {
                for item in value.as_object().into_iter().flat_map(|o| o.values()) {
                    check(rule, item, &format!("{at}.*"))?;
                }
                true
            }
            "properties" => {
                for (name, part) in value.as_object().into_iter().flatten() {
                    let at = format!("{at}.{name}");
                    let Some(rule) = rule.get(name) else {
                        return Err(format!("{at} is not in the schema"));
                    };
                    check(rule, part, &at)?;
                }
                true
            }
            _ => return fail(&format!("unknown keyword {keyword}")),
        };
        if !good {
            return fail(keyword);
        }
    }
    Ok(())
}

/// The three patterns in use.
fn matches(pattern: Option<&str>, text: Option<&str>) -> bool {
    let hex = |t: &str| t.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let Some(text) = text else {
        return false;
    };
    match pattern {
        Some("^0x[0-9a-f]+$") => text
            .strip_prefix("0x")
            .is_some_and(|t| !t.is_empty() && hex(t)),
        Some("^([0-9a-f]{2})*$") => text.len().is_multiple_of(2) && hex(text),
        Some("^[0-9a-f]{64}$") => text.len() == 64 && hex(text),
        _ => false,
    }
}

fn finding_schema() -> Value {
    serde_json::from_str(include_str!("../../schema/finding.json")).expect("a schema")
}

#[test]
fn findings_are_as_published() {
    let schema = finding_schema();
    for finding in [unbacked(), hook()] {
        let value = serde_json::to_value(Record::from(&finding)).unwrap();
        check(&schema, &value, "finding").unwrap();
    }
}

#[test]
fn the_status_is_as_published() {
    let schema = serde_json::from_str(include_str!("../../schema/status.json")).unwrap();
    let value: Value = serde_json::from_str(&Status::new(&monitoring(), [1; 3]).json()).unwrap();
    check(&schema, &value, "status").unwrap();
}

#[test]
fn what_is_not_as_published_is_noticed() {
    let schema = finding_schema();
    let good = serde_json::to_value(Record::from(&hook())).unwrap();
    let spoilt = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        check(&schema, &bad, "finding").is_err()
    };
    assert!(spoilt("/rip", 5.into()));
    assert!(spoilt("/rip", "ff".into()));
    assert!(spoilt("/cpl", 4.into()));
    assert!(spoilt("/victim/export", 1.into()));
    assert!(spoilt("/timeline/0/change", "moved".into()));
    assert!(spoilt("/severity", "dire".into()));
    let mut fewer = good.clone();
    fewer.as_object_mut().unwrap().remove("gla");
    assert!(check(&schema, &fewer, "finding").is_err());
    let mut more = good.clone();
    more["surprise"] = 1.into();
    assert!(check(&schema, &more, "finding").is_err());
}
