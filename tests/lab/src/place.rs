//! Where things lie: the workspace, what is built, what is cached.
//!
//! Everything that a run makes goes below `target/lab`, a temporary directory
//! or the user's cache; the source tree is only read.

use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The workspace's root directory.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where the cross-built images go: `target/lab`, or below `CARGO_TARGET_DIR`.
pub(crate) fn output() -> PathBuf {
    cargo_target().join("lab")
}

/// Cargo's own target directory.
pub(crate) fn cargo_target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |given| workspace().join(given),
    )
}

/// Cache of what takes long to make, outside the tree:
/// `$XDG_CACHE_HOME/hvdetect-lab`, or below `~/.cache`.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("hvdetect-lab"))
}

/// A directory of one run, removed with everything in it when dropped.
///
/// It lies in the system's temporary directory because the path of the Unix
/// socket in it may have at most 107 bytes.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    keep: bool,
}

impl RunDirectory {
    /// A fresh empty directory.
    pub(crate) fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let path = env::temp_dir().join(format!(
                "hvlab-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        keep: env::var_os("HVDETECT_LAB_KEEP").is_some(),
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("create {}", path.display()));
                }
            }
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.keep {
            crate::progress::note(&format!("kept {}", self.path.display()));
        } else {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}
