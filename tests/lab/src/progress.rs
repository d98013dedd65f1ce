//! What a person at the terminal sees of long work: one line a step on stderr,
//! with the time it took. Standard output is for results.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// One line that is no step of its own.
pub(crate) fn note(text: &str) {
    eprintln!("  lab: {text}");
}

/// Runs `work` as a step called `name`, and says how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("  lab: {name} ...");
    let begin = Instant::now();
    let result = work();
    let seconds = begin.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("  lab: {name}: done in {seconds:.1} s"),
        Err(_) => eprintln!("  lab: {name}: FAILED after {seconds:.1} s"),
    }
    result
}

/// Runs a command with its output in the file `log`; a failure shows the file's
/// last lines. On a terminal, a dot every five seconds says that it lives.
pub(crate) fn run(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let terminal = std::io::stderr().is_terminal();
    let mut waited = Duration::ZERO;
    let mut dots = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let pause = Duration::from_millis(50);
        thread::sleep(pause);
        waited += pause;
        if terminal && waited >= Duration::from_secs(5) {
            eprint!(".");
            drop(std::io::stderr().flush());
            waited = Duration::ZERO;
            dots = true;
        }
    };
    if dots {
        eprintln!();
    }
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        bail!(
            "{program} failed ({status}); the end of {}:\n{}",
            log.display(),
            last_lines(&text, 40)
        );
    }
    Ok(())
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_of_short_and_long_texts() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }

    #[test]
    fn a_failing_command_shows_its_last_lines() {
        let directory = crate::place::RunDirectory::new().expect("temporary directory");
        let log = directory.path().join("log");
        let error = run(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            &log,
        )
        .expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("one\ntwo"), "{text}");
    }
}
