//! The log: one JSON line a finding.
//!
//! The machine may crash at any moment, the more so when something fights the
//! kernel: each line is synced before the next finding is asked for. A crash can
//! leave a torn last line, which readers skip and the next writer closes.

use crate::failure::Failure;
use crate::record::Record;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "findings.jsonl";

/// Where the log is unless told otherwise; `None` if the system has no such
/// place.
pub(crate) fn default_path() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    let folder = if cfg!(windows) {
        PathBuf::from(from("ProgramData")?)
    } else if let Some(state) = from("XDG_STATE_HOME") {
        PathBuf::from(state)
    } else {
        PathBuf::from(from("HOME")?).join(".local").join("state")
    };
    Some(folder.join("hvdetect").join(FILE))
}

/// The path to read: as given, or the default.
pub(crate) fn path(given: Option<&Path>) -> Result<PathBuf, Failure> {
    given
        .map(Path::to_path_buf)
        .or_else(default_path)
        .ok_or_else(|| Failure::other("no place for a log; give one with --log FILE."))
}

/// An open log that is appended to.
pub(crate) struct Log {
    file: File,
}

impl Log {
    /// Opens or makes the file and its folder; closes a torn last line.
    pub(crate) fn append(path: &Path) -> io::Result<Log> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.create(true).read(true).append(true).open(path)?;
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Log { file })
    }

    /// Appends one line and waits until it is on the disk.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        // In one call: another writer's line cannot come in between.
        self.file.write_all((record.json() + "\n").as_bytes())?;
        self.file.sync_data()
    }
}

/// A line of the log.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// A finding.
    Good(Box<Record>),
    /// Line number and what is wrong with it.
    Bad(u64, String),
    /// The last line, without its end: the machine stopped while writing it.
    Torn(u64),
}

/// Reads a log line by line.
pub(crate) fn read(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Line>> + use<>> {
    Ok(lines(BufReader::new(File::open(path)?)))
}

fn lines(mut reader: impl BufRead) -> impl Iterator<Item = io::Result<Line>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let mut raw = Vec::new();
            match reader.read_until(b'\n', &mut raw) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            number += 1;
            let whole = raw.ends_with(b"\n");
            let trimmed = raw.trim_ascii();
            if trimmed.is_empty() {
                continue;
            }
            return Some(Ok(match serde_json::from_slice::<Record>(trimmed) {
                Ok(record) => Line::Good(Box::new(record)),
                Err(_) if !whole => Line::Torn(number),
                Err(error) => Line::Bad(number, error.to_string()),
            }));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{hook, unbacked};

    fn kinds(bytes: &[u8]) -> Vec<String> {
        lines(bytes)
            .map(|line| match line.unwrap() {
                Line::Good(record) => format!("good {}", record.seq),
                Line::Bad(number, _) => format!("bad {number}"),
                Line::Torn(number) => format!("torn {number}"),
            })
            .collect()
    }

    #[test]
    fn a_torn_last_line_is_told_from_a_bad_one() {
        let one = Record::from(&unbacked()).json();
        let two = Record::from(&hook()).json();
        let good = format!("{one}\r\n\n{two}\n");
        assert_eq!(kinds(good.as_bytes()), ["good 1", "good 2"]);
        for cut in 1..two.len() {
            let torn = format!("{one}\n{}", &two[..cut]);
            assert_eq!(kinds(torn.as_bytes()), ["good 1", "torn 2"], "{cut}");
        }
        let bad = [one.as_bytes(), b"\n{}\n\xff\n", two.as_bytes()].concat();
        assert_eq!(kinds(&bad), ["good 1", "bad 2", "bad 3", "good 2"]);
    }

    #[test]
    fn appending_closes_a_torn_line() {
        let folder = std::env::temp_dir().join(format!("hvdetect-log-{}", std::process::id()));
        let path = folder.join("deep").join("log.jsonl");
        let record = Record::from(&unbacked());
        Log::append(&path).unwrap().write(&record).unwrap();
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"schema\":1,\"se");
        fs::write(&path, &torn).unwrap();
        Log::append(&path).unwrap().write(&record).unwrap();
        Log::append(&path).unwrap().write(&record).unwrap();
        let found = kinds(&fs::read(&path).unwrap());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, ["good 1", "bad 2", "good 1", "good 1"]);
    }
}
