//! Cross-builds what runs in the machine: the ROM, MiniNT, WDFLDR.SYS, the
//! driver, the specimens, a driver in C; and, for the host, the command-line
//! program.
//!
//! Cargo decides what is stale. Link arguments that differ from image to image
//! go after `--` of `cargo rustc`, so that all images share one build of the
//! library and of the common crates.

use crate::machine::BootFiles;
use crate::place;
use crate::progress;
use crate::setup::Toolchain;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "x86_64-pc-windows-msvc";
/// The driver's, where there is no WDK.
const DRIVER_FEATURES: &[&str] = &["--no-default-features", "--features", "standin"];
/// The same with the mistakes that can be planted.
const SEEDED_FEATURES: &[&str] = &[
    "--no-default-features",
    "--features",
    "standin,seeded-faults",
];

/// Environment variable: take the images as they are.
pub(crate) const NO_BUILD: &str = "HVDETECT_LAB_NO_BUILD";

/// How the images are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Assertions and overflow checks on, no link-time optimization.
    Debug,
    /// As shipped.
    Release,
}

impl Profile {
    const fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// One PE image to be built.
struct Recipe<'a> {
    package: &'a str,
    entry: &'a str,
    file: &'a str,
    features: &'a [&'a str],
}

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A machine without our driver in it, for drivers of others.
    Machine,
    /// Everything: the driver and the specimens too.
    All,
}

/// What was built. Paths of files below `target/lab/<profile>`.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// `ntoskrnl.exe`.
    pub(crate) kernel: PathBuf,
    /// `WDFLDR.SYS`.
    pub(crate) wdfldr: PathBuf,
    /// `hvdetect_driver.sys`, if wanted.
    pub(crate) driver: Option<PathBuf>,
    /// Every specimen, in the order of their names.
    pub(crate) specimens: Vec<PathBuf>,
    /// Drivers written in C.
    pub(crate) fixtures: Vec<PathBuf>,
    /// The `hvdetect` program, for this host.
    pub(crate) cli: PathBuf,
}

/// Builds what is wanted.
pub(crate) fn build(toolchain: &Toolchain, profile: Profile, wanted: Wanted) -> Result<Images> {
    let out = place::output().join(profile.directory());
    fs::create_dir_all(&out)?;
    if std::env::var_os(NO_BUILD).is_some() {
        progress::note(&format!("{NO_BUILD} is set: taking the images as they are"));
        return found(&out, profile, wanted);
    }
    let image = |package: &str, entry: &str, file: &str, features: &[&str]| {
        let recipe = Recipe {
            package,
            entry,
            file,
            features,
        };
        cross_build(toolchain, profile, &recipe, &out)
            .with_context(|| format!("build of {package}"))
    };
    progress::step(
        &format!("building the images ({})", profile.directory()),
        || {
            let kernel = image("minint", "KiSystemStartup", "ntoskrnl.exe", &[])?;
            let wdfldr = image("wdfldr", "DriverEntry", "WDFLDR.SYS", &[])?;
            let mut driver = None;
            let mut specimens = Vec::new();
            if wanted == Wanted::All {
                driver = Some(image(
                    "hvdetect-driver",
                    "FxDriverEntry",
                    "hvdetect_driver.sys",
                    DRIVER_FEATURES,
                )?);
                for name in specimen_names()? {
                    specimens.push(image(&name, "DriverEntry", &specimen_file(&name), &[])?);
                }
            }
            Ok(Images {
                kernel,
                wdfldr,
                driver,
                specimens,
                fixtures: fixtures(&out)?,
                cli: cli(profile)?,
            })
        },
    )
}

/// The images of an earlier build, whatever has changed since.
fn found(out: &Path, profile: Profile, wanted: Wanted) -> Result<Images> {
    let names = if wanted == Wanted::All {
        specimen_names()?
    } else {
        Vec::new()
    };
    let file = |name: &str| out.join(name);
    let images = Images {
        kernel: file("ntoskrnl.exe"),
        wdfldr: file("WDFLDR.SYS"),
        driver: (wanted == Wanted::All).then(|| file("hvdetect_driver.sys")),
        specimens: names
            .iter()
            .map(|name| file(&specimen_file(name)))
            .collect(),
        fixtures: FIXTURES
            .map(|name| file(name).with_extension("sys"))
            .to_vec(),
        cli: place::cargo_target()
            .join(profile.directory())
            .join("hvdetect"),
    };
    for path in images.all() {
        if !path.is_file() {
            bail!("{} has not been built", path.display());
        }
    }
    Ok(images)
}

/// The driver file of a specimen.
pub(crate) fn specimen_file(name: &str) -> String {
    format!("{}.sys", name.replace('-', "_"))
}

/// The specimens: folders of `tests/specimens` with a `Cargo.toml`.
pub(crate) fn specimen_names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    let folder = place::workspace().join("tests/specimens");
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes a command of cargo's one for bare metal, with the library built along.
fn bare_metal(command: &mut Command, profile: Profile, package: &str) {
    command
        .args(["--locked", "--quiet"])
        .args(["--target", TARGET, "--package", package])
        .arg("-Zbuild-std=core,alloc,compiler_builtins")
        .arg("-Zbuild-std-features=compiler-builtins-mem")
        .env("CARGO_TARGET_DIR", place::output().join("cargo"));
    if let Ok(home) = std::env::var("CARGO_HOME") {
        command.env("CARGO_HOME", home);
    }
    // Bindings are made by libclang; bindgen finds the newest, clang's headers
    // must be of the same version.
    if std::env::var_os("LIBCLANG_PATH").is_none() {
        command.env("LIBCLANG_PATH", "/usr/lib/llvm-19/lib");
    }
    if profile == Profile::Release {
        command.arg("--release");
    } else {
        // Unoptimized code has frames too large for a kernel's stack, and
        // compiler_builtins then wants a C mathematics library.
        command.args(["--config", "profile.dev.opt-level=2"]);
    }
}

/// Runs clippy over everything that only bare metal compiles; a warning is an
/// error.
pub(crate) fn lint(toolchain: &Toolchain) -> Result<()> {
    let mut crates: Vec<(String, Vec<&str>)> = vec![
        ("minint".to_owned(), vec![]),
        ("wdfldr".to_owned(), vec![]),
        ("wdk-standin".to_owned(), vec!["--features", "kmdf"]),
        ("hvdetect-driver".to_owned(), DRIVER_FEATURES.to_vec()),
        ("hvdetect-driver".to_owned(), SEEDED_FEATURES.to_vec()),
    ];
    for name in specimen_names()? {
        crates.push((name, vec![]));
    }
    progress::step("clippy over the bare-metal crates", || {
        let mut failed = Vec::new();
        for (package, features) in &crates {
            let mut command = toolchain.clippy()?;
            bare_metal(&mut command, Profile::Debug, package);
            let status = command
                .arg("--lib")
                .args(features)
                .args(["--", "-D", "warnings"])
                .stdin(Stdio::null())
                .status()
                .context("start clippy")?;
            if !status.success() {
                failed.push(package.as_str());
            }
        }
        if !failed.is_empty() {
            bail!("clippy objects to {}", failed.join(", "));
        }
        Ok(())
    })
}

fn cross_build(
    toolchain: &Toolchain,
    profile: Profile,
    recipe: &Recipe<'_>,
    out: &Path,
) -> Result<PathBuf> {
    let mut command = toolchain.cargo();
    command
        .args(["rustc", "--lib"])
        .args(["--message-format", "json-render-diagnostics"]);
    bare_metal(&mut command, profile, recipe.package);
    command
        .args(recipe.features)
        .env("CARGO_TARGET_X86_64_PC_WINDOWS_MSVC_LINKER", "lld-link-19")
        .env(
            "CARGO_TARGET_X86_64_PC_WINDOWS_MSVC_RUSTFLAGS",
            "-Ctarget-feature=+crt-static",
        )
        .arg("--");
    let pdb = Path::new(recipe.file).with_extension("pdb");
    for argument in [
        "/SUBSYSTEM:NATIVE",
        "/DRIVER",
        "/RELEASE",
        "/NODEFAULTLIB",
        "/INTEGRITYCHECK",
        "/NXCOMPAT",
        "/DYNAMICBASE",
    ] {
        command.arg(format!("-Clink-arg={argument}"));
    }
    command
        .arg(format!("-Clink-arg=/ENTRY:{}", recipe.entry))
        .arg(format!("-Clink-arg=/PDBALTPATH:{}", pdb.display()));
    let made = artifacts(&mut command)?;
    let image = made
        .iter()
        .find(|path| path.extension().is_some_and(|kind| kind == "dll"))
        .context("cargo made no image: the crate must be a cdylib")?;
    let file = out.join(recipe.file);
    copy_if_newer(image, &file)?;
    // rustc replaces dashes of the crate's name; the linker does not matter here.
    let symbols = image.with_extension("pdb");
    if symbols.is_file() {
        copy_if_newer(&symbols, &out.join(pdb))?;
    }
    Ok(file)
}

/// Runs cargo; the files of the last artifact that it reports.
fn artifacts(command: &mut Command) -> Result<Vec<PathBuf>> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!(
            "cargo failed ({}):\n{}",
            output.status,
            progress::last_lines(&String::from_utf8_lossy(&output.stderr), 60)
        );
    }
    let mut files = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if message["reason"] == "compiler-artifact" {
            files = message["filenames"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(PathBuf::from))
                .collect();
        }
    }
    Ok(files)
}

fn copy_if_newer(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| from.display().to_string())?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // Renamed into place: another lab may be reading the file.
    let partial = to.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, bytes)?;
    fs::rename(&partial, to).with_context(|| to.display().to_string())
}

const FIXTURES: [&str; 2] = ["simple_wdm", "unresolved"];

/// Builds the drivers of `tests/lab/fixtures` with mingw-w64.
fn fixtures(out: &Path) -> Result<Vec<PathBuf>> {
    let folder = place::workspace().join("tests/lab/fixtures");
    let mut built = Vec::new();
    for name in FIXTURES {
        let source = folder.join(name).with_extension("c");
        let file = out.join(name).with_extension("sys");
        let fresh = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
        if let (Ok(made), Ok(written)) = (fresh(&file), fresh(&source))
            && made > written
        {
            built.push(file);
            continue;
        }
        let mut libraries = vec!["-lntoskrnl".to_owned()];
        let definition = folder.join(name).with_extension("def");
        if definition.is_file() {
            let library = out.join(format!("lib{name}.a"));
            progress::run(
                Command::new("x86_64-w64-mingw32-dlltool")
                    .arg("-d")
                    .arg(&definition)
                    .arg("-l")
                    .arg(&library),
                &out.join("log/dlltool"),
            )?;
            libraries.insert(0, library.display().to_string());
        }
        progress::run(
            Command::new("x86_64-w64-mingw32-gcc")
                .args(["-O2", "-Wall", "-Wextra", "-Wno-multichar"])
                .args(["-ffreestanding", "-fno-builtin", "-nostdlib"])
                .arg("-I/usr/x86_64-w64-mingw32/include/ddk")
                .arg("-Wl,--subsystem,native,--entry,DriverEntry")
                .arg("-Wl,--dynamicbase,--nxcompat,--image-base,0x140000000")
                .arg("-Wl,--no-insert-timestamp")
                .arg("-o")
                .arg(&file)
                .arg(&source)
                .args(libraries),
            &out.join("log/mingw"),
        )
        .with_context(|| format!("build of fixture {name}"))?;
        built.push(file);
    }
    Ok(built)
}

/// Lays out what the emulator boots from.
pub(crate) fn boot_files(
    kernel: &[u8],
    files: Vec<(String, Vec<u8>)>,
    words: &str,
) -> Result<BootFiles> {
    let built = bootimg::build(&bootimg::Spec {
        kernel,
        files,
        cmdline: words.to_owned(),
    })?;
    Ok(BootFiles {
        rom: built.rom,
        image: built.image,
    })
}

/// Builds the command-line program for this host with the cargo that runs us.
fn cli(profile: Profile) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(place::workspace())
        .args(["build", "--locked", "--quiet", "--package", "hvdetect"])
        .args(["--message-format", "json-render-diagnostics"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    artifacts(&mut command)
        .context("build of the command-line program")?
        .into_iter()
        .next()
        .context("cargo made no hvdetect program")
}

impl Images {
    /// The same, but with the test build of the driver, in which mistakes can be
    /// planted.
    pub(crate) fn seeded(&self, toolchain: &Toolchain, profile: Profile) -> Result<Self> {
        let out = self.directory().join("seeded");
        fs::create_dir_all(&out)?;
        let recipe = Recipe {
            package: "hvdetect-driver",
            entry: "FxDriverEntry",
            file: "hvdetect_driver.sys",
            features: SEEDED_FEATURES,
        };
        let driver = if std::env::var_os(NO_BUILD).is_some() {
            out.join(recipe.file)
        } else {
            progress::step(
                "building the driver in which mistakes can be planted",
                || cross_build(toolchain, profile, &recipe, &out),
            )?
        };
        Ok(Self {
            driver: Some(driver),
            ..self.clone()
        })
    }

    /// Directory of this profile's images.
    pub(crate) fn directory(&self) -> &Path {
        self.kernel.parent().unwrap_or(&self.kernel)
    }

    /// Driver files for the machine's RAM disk.
    pub(crate) fn drivers(&self) -> impl Iterator<Item = &Path> {
        [&self.wdfldr]
            .into_iter()
            .chain(&self.driver)
            .chain(&self.specimens)
            .chain(&self.fixtures)
            .map(PathBuf::as_path)
    }

    /// Every file that was built.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.kernel, &self.cli]
            .into_iter()
            .map(PathBuf::as_path)
            .chain(self.drivers())
    }
}
