//! QEMU's monitor (QMP, "QEMU Machine Protocol"): one question a connection, and
//! its registers in the form in which our Bochs gives them.
//!
//! The monitor serves one connection at a time and lets the next one wait, so a
//! question may come from any thread. It shows neither the VMCB of the last VMRUN
//! nor whether a processor is in its guest: those fields are missing here.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// EFER.SVME (AMD64 APM volume 2, "Extended Feature Enable Register").
const SVME: u64 = 1 << 12;

/// Registers of every processor, by the names that Bochs's instrumentation has.
pub(crate) fn registers(socket: &Path, limit: Duration) -> Result<Value> {
    let text = monitor(socket, "info registers -a", limit)?;
    let all = parse(&text);
    if all.is_empty() {
        bail!("QEMU shows no registers: {text}");
    }
    Ok(Value::Array(all))
}

/// Runs one command of the human monitor; what it printed.
fn monitor(socket: &Path, command: &str, limit: Duration) -> Result<String> {
    let stream = UnixStream::connect(socket).context("connect to QEMU's monitor")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut lines = BufReader::new(&stream).lines();
    let mut ask = |request: Option<Value>| -> Result<Value> {
        if let Some(request) = request {
            (&stream).write_all(format!("{request}\n").as_bytes())?;
        }
        // Events may come between a request and its answer.
        loop {
            let line = lines.next().context("QEMU's monitor is gone")??;
            let answer: Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor: {error}");
            }
            if answer.get("QMP").is_some() || answer.get("return").is_some() {
                return Ok(answer);
            }
        }
    };
    ask(None)?;
    ask(Some(json!({"execute": "qmp_capabilities"})))?;
    let answer = ask(Some(json!({
        "execute": "human-monitor-command",
        "arguments": {"command-line": command},
    })))?;
    let text = answer["return"].as_str().context("QEMU's answer")?;
    Ok(text.to_owned())
}

/// `info registers -a`: a line `CPU#n`, then words `NAME=hex` and tables.
fn parse(text: &str) -> Vec<Value> {
    let mut all: Vec<Map<String, Value>> = Vec::new();
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#") {
            let mut cpu = Map::new();
            cpu.insert("cpu".to_owned(), json!(number.parse::<u32>().unwrap_or(0)));
            all.push(cpu);
            continue;
        }
        let Some(cpu) = all.last_mut() else {
            continue;
        };
        for (name, value) in words(line) {
            cpu.entry(name).or_insert_with(|| json!(value));
        }
    }
    for cpu in &mut all {
        let is_set = |name: &str, bits: u64| {
            cpu.get(name)
                .and_then(Value::as_u64)
                .is_some_and(|value| value & bits != 0)
        };
        let (svm, halted) = (is_set("efer", SVME), is_set("hlt", 1));
        cpu.insert("vendor".to_owned(), json!(if svm { "svm" } else { "none" }));
        let mode = if svm { "root or guest" } else { "off" };
        cpu.insert("mode".to_owned(), json!(mode));
        cpu.insert("activity".to_owned(), json!(u32::from(halted)));
    }
    all.into_iter().map(Value::Object).collect()
}

/// The words `NAME=hex` of a line. QEMU pads short names (`R8 =…`).
fn words(line: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('=') {
        let name = before.split_whitespace().last().unwrap_or("");
        let digits = after
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(after.len());
        if let Ok(value) = u64::from_str_radix(&after[..digits], 16) {
            let name = name.to_ascii_lowercase();
            let name = if name == "rfl" {
                "rflags".to_owned()
            } else {
                name
            };
            found.push((name, value));
        }
        rest = &after[digits..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\nCPU#0\nRAX=0000000000000001 RBX=fffff80000001000 RCX=0 RDX=0\n\
        R8 =0000000000000008 R9 =0000000000000009\n\
        RIP=fffff8000012ab34 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
        CS =0010 0000000000000000 00000000 00209b00 DPL=0 CS64 [-RA]\n\
        CR0=80050033 CR2=0 CR3=0000000000010000 CR4=000006f8\n\
        EFER=0000000000001d01\nFCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\n\
        CPU#1\nRAX=2\r\nRIP=0000000000000abc RFL=00000002 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0\n\
        EFER=0000000000000d01\n";

    #[test]
    fn every_processor_has_its_registers() {
        let all = parse(TEXT);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0]["rip"], 0xffff_f800_0012_ab34_u64);
        assert_eq!(all[0]["r8"], 8);
        assert_eq!(all[0]["rflags"], 0x246);
        assert_eq!(all[0]["cr3"], 0x1_0000);
        assert_eq!(all[0]["activity"], 1);
        assert_eq!(all[0]["vendor"], "svm");
        assert_eq!(all[1]["cpu"], 1);
        assert_eq!(all[1]["rax"], 2);
        assert_eq!(all[1]["vendor"], "none");
        assert_eq!(all[1]["activity"], 0);
    }

    #[test]
    fn other_text_has_no_registers() {
        assert!(parse("unknown command: 'info registers'").is_empty());
    }
}
