//! Everything that a machine must have before the lab can run, found or put
//! there: Debian packages, a Rust toolchain that can build for Windows, Bochs.
//!
//! Every verb calls what it needs of this; all of it is idempotent and quick
//! when there is nothing to do. One process at a time installs: a lock file in
//! the cache, held by the kernel, so that a killed run leaves no lock behind.

mod apt;
mod bochs;
mod toolchain;

pub(crate) use bochs::Bochs;
pub(crate) use toolchain::Toolchain;

use crate::machine::Emulator;
use crate::place;
use anyhow::{Context, Result};
use std::fs::{self, File};

/// What the machine offers once set-up is through.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Compiler and cargo for the bare-metal images.
    pub(crate) toolchain: Toolchain,
    /// Our build of Bochs 3.0.
    pub(crate) bochs: Bochs,
}

/// Packages that every verb needs: what compiles the images, what compiles
/// Bochs, and the video BIOS that Bochs insists on.
const PACKAGES: &[&str] = &[
    "lld-19",
    "llvm-19",
    "clang-19",
    "libclang-19-dev",
    "libclang-common-19-dev",
    "mingw-w64-x86-64-dev",
    "gcc-mingw-w64-x86-64",
    "vgabios",
    "g++",
    "make",
    "patch",
    "xz-utils",
    "dpkg-dev",
    "util-linux",
];

/// Makes the machine ready for the lab with our Bochs.
pub(crate) fn all() -> Result<Tools> {
    let _lock = lock()?;
    apt::install(PACKAGES)?;
    let toolchain = toolchain::find_or_install()?;
    let bochs = bochs::find_or_build()?;
    Ok(Tools { toolchain, bochs })
}

/// What an emulator other than our Bochs needs besides, installed only when asked for.
pub(crate) fn emulator(which: Emulator) -> Result<()> {
    match which {
        Emulator::Bochs => Ok(()),
        Emulator::Bochs2 => package("bochs"),
        Emulator::Qemu => package("qemu-system-x86"),
    }
}

fn package(name: &str) -> Result<()> {
    let _lock = lock()?;
    apt::install(&[name])
}

fn lock() -> Result<File> {
    let directory = place::cache()?;
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let file = File::create(directory.join("lock"))?;
    if file.try_lock().is_err() {
        crate::progress::note("another lab is being set up; waiting for it");
        file.lock()?;
    }
    Ok(file)
}
