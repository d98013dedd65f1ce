//! Bochs 3.0 with the lab's corrections and instrumentation.
//!
//! Debian 12 packages 2.7, whose NMI, INIT and MTF are broken, so 3.0 is built
//! from Debian's source package (release trixie) and kept in the user's cache
//! under a name that is a hash of all that went into it: a changed patch,
//! instrumentation or option makes another build, an old one stays usable.

use super::apt;
use crate::{place, progress};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

const VERSION: &str = "3.0";
const RELEASE: &str = "trixie";
const ARCHIVE: &str = "bochs_3.0+dfsg.orig.tar.xz";

/// A usable build.
#[derive(Clone, Debug)]
pub(crate) struct Bochs {
    /// The emulator's executable.
    pub(crate) program: PathBuf,
}

/// Finds our build in the cache, or makes it (three minutes on two cores).
pub(crate) fn find_or_build() -> Result<Bochs> {
    let recipe = place::workspace().join("tests/emulators/bochs");
    let options = fs::read_to_string(recipe.join("configure-options"))
        .context("tests/emulators/bochs/configure-options")?;
    let options: Vec<&str> = options.split_whitespace().collect();
    let place = place::cache()?.join(format!("bochs-{VERSION}-{}", fingerprint(&recipe)?));
    let program = place.join("bochs");
    if program.is_file() {
        return Ok(Bochs { program });
    }
    progress::step(
        "building Bochs 3.0 (once; about three minutes on two cores)",
        || {
            let work = place::cache()?.join("bochs-build");
            drop(fs::remove_dir_all(&work));
            fs::create_dir_all(&work)?;
            build(&recipe, &options, &work, &place)
        },
    )?;
    if !program.is_file() {
        bail!("the build made no {}", program.display());
    }
    Ok(Bochs { program })
}

fn build(recipe: &Path, options: &[&str], work: &Path, place: &Path) -> Result<()> {
    let log = |name: &str| -> Result<PathBuf> { Ok(place::cache()?.join("log").join(name)) };
    let downloads = place::cache()?.join("source");
    fs::create_dir_all(&downloads)?;
    let archive = progress::step("fetching the Bochs source package", || {
        apt::upstream_source("bochs", RELEASE, ARCHIVE, &downloads)
    })?;
    progress::run(
        Command::new("tar")
            .args(["--extract", "--no-same-owner", "--strip-components=1"])
            .arg("--file")
            .arg(&archive)
            .current_dir(work),
        &log("bochs-unpack")?,
    )?;
    progress::run(
        Command::new("patch")
            .args(["-p1", "--batch", "--forward", "--fuzz=0", "-i"])
            .arg(recipe.join("bochs-3.0.diff"))
            .current_dir(work),
        &log("bochs-patch")?,
    )?;
    let instrumentation = work.join("instrument/hvdetect");
    fs::create_dir_all(&instrumentation)?;
    for entry in fs::read_dir(recipe.join("instrument"))? {
        let entry = entry?;
        fs::copy(entry.path(), instrumentation.join(entry.file_name()))?;
    }
    progress::run(
        Command::new("sh")
            .arg("./configure")
            .arg("--enable-instrumentation=instrument/hvdetect")
            .args(options)
            .env("CXXFLAGS", "-O2")
            .env("CFLAGS", "-O2")
            .current_dir(work),
        &log("bochs-configure")?,
    )?;
    let jobs = thread::available_parallelism().map_or(2, usize::from);
    progress::run(
        Command::new("make")
            .arg(format!("-j{jobs}"))
            .current_dir(work),
        &log("bochs-make")?,
    )?;
    fs::create_dir_all(place)?;
    let partial = place.join("bochs.partial");
    fs::copy(work.join("bochs"), &partial).context("the built emulator")?;
    fs::rename(partial, place.join("bochs"))?;
    fs::remove_dir_all(work)?;
    Ok(())
}

/// Hash of the patch, the options and every instrumentation file.
fn fingerprint(recipe: &Path) -> Result<String> {
    let mut files = vec![
        recipe.join("bochs-3.0.diff"),
        recipe.join("configure-options"),
    ];
    for entry in fs::read_dir(recipe.join("instrument")).context("tests/emulators/bochs")? {
        files.push(entry?.path());
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        hash.update(
            file.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .as_bytes(),
        );
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    let mut text = String::new();
    for byte in &hash.finalize()[..8] {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_every_ingredient() {
        let directory = place::RunDirectory::new().expect("temporary directory");
        let recipe = directory.path();
        fs::create_dir(recipe.join("instrument")).expect("directory");
        for (name, text) in [
            ("bochs-3.0.diff", "a"),
            ("configure-options", "b"),
            ("instrument/instrument.cc", "c"),
        ] {
            fs::write(recipe.join(name), text).expect("write");
        }
        let first = fingerprint(recipe).expect("hash");
        assert_eq!(fingerprint(recipe).expect("hash"), first);
        for name in [
            "bochs-3.0.diff",
            "configure-options",
            "instrument/instrument.cc",
        ] {
            let before = fs::read(recipe.join(name)).expect("read");
            fs::write(recipe.join(name), "changed").expect("write");
            assert_ne!(fingerprint(recipe).expect("hash"), first, "{name}");
            fs::write(recipe.join(name), before).expect("write");
        }
    }
}
