//! A machine with the project's own images in it, and the `hvdetect` program
//! run against it: what the verbs and the cases have in common.

use crate::images::Images;
use crate::machine::{BootFiles, Machine, Options};
use crate::setup::Bochs;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What to boot. Machines are made from it, as many as wanted.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    images: &'a Images,
    extra: Vec<(String, Vec<u8>)>,
    words: String,
}

/// What a command printed and returned.
#[derive(Clone, Debug)]
pub(crate) struct CommandOutput {
    /// Exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl<'a> Session<'a> {
    /// A machine with the driver and every specimen in its RAM disk, none loaded.
    pub(crate) fn new(images: &'a Images) -> Self {
        Self {
            images,
            extra: Vec::new(),
            words: String::new(),
        }
    }

    /// Puts another driver file into the RAM disk; the name of its service.
    pub(crate) fn add_driver(&mut self, file: &Path) -> Result<String> {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .with_context(|| format!("{} has no usable name", file.display()))?;
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        self.extra.push((name.to_owned(), bytes));
        Ok(service_name(name))
    }

    /// Adds words to MiniNT's command line.
    pub(crate) fn boot_words(&mut self, words: &str) {
        if !words.is_empty() {
            if !self.words.is_empty() {
                self.words.push(' ');
            }
            self.words.push_str(words);
        }
    }

    /// Takes all words back that were added.
    pub(crate) fn forget_boot_words(&mut self) {
        self.words.clear();
    }

    /// The `hvdetect` program.
    pub(crate) fn cli(&self) -> &Path {
        &self.images.cli
    }

    /// Boots a machine.
    pub(crate) fn boot(&self, options: Options, bochs: Option<&Bochs>) -> Result<Machine> {
        let files = self.boot_files()?;
        Machine::boot(options, bochs, &files)
    }

    fn boot_files(&self) -> Result<BootFiles> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        let mut files = Vec::new();
        for path in self.images.drivers() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((name.into_owned(), read(path)?));
        }
        for (name, bytes) in &self.extra {
            files.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            files.push((name.clone(), bytes.clone()));
        }
        let kernel = read(&self.images.kernel)?;
        crate::images::boot_files(&kernel, files, &self.words)
    }

    /// Runs `hvdetect` with these arguments against the machine and waits for it.
    pub(crate) fn hvdetect(&self, machine: &Machine, arguments: &[&str]) -> Result<CommandOutput> {
        let mut words = vec!["hvdetect".to_owned()];
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        self.command(machine, &words)
    }

    /// Runs `hvdetect` without any machine.
    pub(crate) fn hvdetect_alone(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let output = Command::new(&self.images.cli)
            .args(arguments)
            .env_remove("HVDETECT_LAB")
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.images.cli.display().to_string())?;
        Ok(CommandOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs any command with the machine's address in its environment; the word
    /// `hvdetect` means the program that was built.
    pub(crate) fn command(&self, machine: &Machine, words: &[String]) -> Result<CommandOutput> {
        let mut child = self.spawn(machine, words)?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let end = Instant::now() + machine.time_left() + Duration::from_secs(5);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                drop(child.kill());
                drop(child.wait());
                bail!("`{}` did not end in time", words.join(" "));
            }
            thread::sleep(Duration::from_millis(2));
        };
        Ok(CommandOutput {
            code: status.code().unwrap_or(-1),
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        })
    }

    /// Begins `hvdetect` with these arguments and does not wait for it.
    pub(crate) fn begin(&self, machine: &Machine, arguments: &[&str]) -> Result<Child> {
        let mut words = vec!["hvdetect".to_owned()];
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        self.spawn(machine, &words)
    }

    fn spawn(&self, machine: &Machine, words: &[String]) -> Result<Child> {
        let Some((program, arguments)) = words.split_first() else {
            bail!("an empty command");
        };
        let program = if program == "hvdetect" {
            self.images.cli.as_path()
        } else {
            Path::new(program)
        };
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env("HVDETECT_LAB", machine.address().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The service name of a driver file: its name in lower case, without `.sys`.
pub(crate) fn service_name(file: &str) -> String {
    let lower = file.to_ascii_lowercase();
    lower.strip_suffix(".sys").unwrap_or(&lower).to_owned()
}

/// Splits a command line at spaces, with single and double quotes.
pub(crate) fn words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
            word.get_or_insert_default();
        } else if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed: {line}");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_quoted() {
        assert_eq!(
            words(r#"hvdetect  allow --note "two words" '' x"y z""#).expect("good"),
            ["hvdetect", "allow", "--note", "two words", "", "xy z"]
        );
        assert!(words("say \"no end").is_err());
        assert!(words("  ").expect("good").is_empty());
    }

    #[test]
    fn services_are_named_after_their_files() {
        assert_eq!(service_name("WDFLDR.SYS"), "wdfldr");
        assert_eq!(service_name("Pool_Shellcode.sys"), "pool_shellcode");
        assert_eq!(service_name("odd"), "odd");
    }
}
