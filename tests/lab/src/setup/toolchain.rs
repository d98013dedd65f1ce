//! A Rust toolchain that can build the bare-metal images: any compiler of the
//! wanted age with the source of its library, which is built along with each
//! image (`-Zbuild-std`), since memory functions must come from it and not from
//! a C run-time that a kernel does not have.
//!
//! In order: rustup's active toolchain if it has, or can be given, the source;
//! else Debian's `rustc-web` with `rust-web-src`.

use super::apt;
use crate::{place, progress};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const OLDEST: (u32, u32) = (1, 91);
const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "libstd-rust-web-dev",
];

/// A compiler, its cargo, and the source of its library beside it.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    /// A cargo command of this toolchain, free of the variables that the cargo
    /// running us has set.
    pub(crate) fn cargo(&self) -> Command {
        self.program(&self.cargo)
    }

    /// Clippy's cargo command of this toolchain, its first word included; put
    /// there if it is missing.
    pub(crate) fn clippy(&self) -> Result<Command> {
        // By its path: cargo would look for the subcommand in other toolchains too.
        let path = self.cargo.with_file_name("cargo-clippy");
        if !path.is_file() {
            if !self.cargo.starts_with("/usr/bin") {
                bail!("{} is missing: rustup component add clippy", path.display());
            }
            apt::install(&["rust-web-clippy"])?;
        }
        let mut command = self.program(&path);
        command.env("CARGO", &self.cargo).arg("clippy");
        Ok(command)
    }

    fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if (text.starts_with("CARGO") && text != "CARGO_HOME")
                || text.starts_with("RUST") && !matches!(&*text, "RUSTUP_HOME" | "RUSTUP_TOOLCHAIN")
            {
                command.env_remove(&name);
            }
        }
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(place::workspace());
        command
    }
}

/// Finds such a toolchain, or makes one.
pub(crate) fn find_or_install() -> Result<Toolchain> {
    let debian = debian();
    if let Some(toolchain) = rustup()
        .filter(usable)
        .or_else(|| debian.clone().filter(usable))
    {
        return Ok(toolchain);
    }
    if let Some(toolchain) = rustup() {
        let added = progress::step("asking rustup for the library source", || {
            progress::run(
                Command::new("timeout").args(["120", "rustup", "component", "add", "rust-src"]),
                &place::cache()?.join("log/rustup"),
            )
        });
        if added.is_ok() && usable(&toolchain) {
            return Ok(toolchain);
        }
    }
    if !DEBIAN_PACKAGES.iter().all(|name| apt::available(name)) {
        apt::update()?;
    }
    if !DEBIAN_PACKAGES.iter().all(|name| apt::available(name)) {
        bail!(
            "no Rust toolchain with its library's source: neither `rustup component add rust-src` \
             nor Debian's {} is possible here",
            DEBIAN_PACKAGES.join(", ")
        );
    }
    apt::install(DEBIAN_PACKAGES)?;
    match self::debian().filter(usable) {
        Some(toolchain) => Ok(toolchain),
        None => bail!(
            "Debian's rustc-web is there but unusable (older than {}.{}, or without source)",
            OLDEST.0,
            OLDEST.1
        ),
    }
}

/// The toolchain that rustup would use here, by the paths of its own programs.
fn rustup() -> Option<Toolchain> {
    let which = |program: &str| {
        let output = Command::new("rustup")
            .args(["which", program])
            .current_dir(place::workspace())
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        (output.status.success() && path.is_file()).then_some(path)
    };
    Some(Toolchain {
        cargo: which("cargo")?,
        rustc: which("rustc")?,
    })
}

fn debian() -> Option<Toolchain> {
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    (cargo.is_file() && rustc.is_file()).then(|| Toolchain {
        cargo: cargo.into(),
        rustc: rustc.into(),
    })
}

fn usable(toolchain: &Toolchain) -> bool {
    let ask = |argument: &[&str]| {
        Command::new(&toolchain.rustc)
            .args(argument)
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
    };
    let young = ask(&["--version"])
        .and_then(|text| version(&text))
        .is_some_and(|version| version >= OLDEST);
    let source = ask(&["--print", "sysroot"]).is_some_and(|root| {
        Path::new(root.trim())
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    });
    young && source
}

/// `rustc 1.96.0 (…)` → (1, 96).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            version("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Some((1, 96))
        );
        assert_eq!(version("rustc 1.63.0"), Some((1, 63)));
        assert!(version("rustc 1.63.0") < Some(OLDEST));
        assert_eq!(version("nothing"), None);
    }
}
