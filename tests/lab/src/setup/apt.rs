//! Debian packages: what is missing, and where sources come from.
//!
//! No archive's name stands here: the machine's own apt configuration says
//! where packages come from, and apt itself is asked to read it, so that both
//! of its file formats work.

use crate::{place, progress};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Installs those of `packages` that are not there.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress::step(
        &format!("installing Debian packages: {}", missing.join(" ")),
        || {
            update()?;
            let mut command = as_root("apt-get")?;
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "--no-install-recommends"])
                .args(&missing);
            progress::run(&mut command, &place::cache()?.join("log/apt-install"))
        },
    )
}

/// Whether apt could install this package.
pub(crate) fn available(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .output()
        .is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

/// Whether dpkg has this package installed.
pub(crate) fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}\n", package])
        .output()
        .is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .any(|line| line == "installed")
        })
}

/// Refreshes the machine's package lists.
pub(crate) fn update() -> Result<()> {
    progress::run(
        as_root("apt-get")?.arg("update"),
        &place::cache()?.join("log/apt-update"),
    )
}

/// The archives of Debian's main component that this machine is set up to use.
pub(crate) fn archives() -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)|$(LABEL)|$(CODENAME)|$(COMPONENT)",
            "Created-By: Packages",
        ])
        .output()
        .context("run apt-get indextargets")?;
    Ok(debian_archives(&String::from_utf8_lossy(&output.stdout)))
}

fn debian_archives(listing: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        if let [uri, "Debian", codename, "main"] = fields[..]
            && !codename.contains('-')
            && !found.iter().any(|known| known == uri)
        {
            found.push(uri.to_owned());
        }
    }
    found
}

/// Fetches the upstream part of a source package of `release` into `directory`
/// and returns its path. Only the `.orig` archive matters: the machine's mirror
/// may lack the Debian part or the description of an older revision.
pub(crate) fn upstream_source(
    package: &str,
    release: &str,
    wanted: &str,
    directory: &Path,
) -> Result<PathBuf> {
    let archive = directory.join(wanted);
    if archive.is_file() {
        return Ok(archive);
    }
    let mut archives = archives()?;
    if archives.is_empty() {
        update()?;
        archives = self::archives()?;
    }
    if archives.is_empty() {
        bail!("apt knows no Debian archive; add one to /etc/apt and try again");
    }
    let key_ring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed_by = if key_ring.exists() {
        format!("[signed-by={}] ", key_ring.display())
    } else {
        String::new()
    };
    let lists = directory.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let sources = directory.join("sources.list");
    let lines: Vec<String> = archives
        .iter()
        .map(|uri| format!("deb-src {signed_by}{uri} {release} main\n"))
        .collect();
    fs::write(&sources, lines.concat())?;
    let private = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .current_dir(directory)
            .arg(format!("-oDir::Etc::SourceList={}", sources.display()))
            .arg("-oDir::Etc::SourceParts=/dev/null")
            .arg(format!("-oDir::State::Lists={}", lists.display()))
            .arg(format!(
                "-oDir::Cache::pkgcache={}",
                lists.join("pkgcache").display()
            ))
            .arg(format!(
                "-oDir::Cache::srcpkgcache={}",
                lists.join("srcpkgcache").display()
            ))
            .arg("-oAPT::Sandbox::User=root")
            .args(arguments);
        command
    };
    let log = place::cache()?.join("log/source");
    progress::run(&mut private(&["update"]), &log)?;
    // The status does not tell whether the one file that matters arrived.
    let fetched = progress::run(
        &mut private(&["source", "--download-only", package]),
        &place::cache()?.join("log/source-package"),
    );
    if archive.is_file() {
        return Ok(archive);
    }
    // apt gives up at the first missing part; its own list of addresses does not.
    let listing = private(&["source", "--download-only", "--print-uris", package])
        .output()
        .context("apt-get source --print-uris")?;
    if let Some(address) = address_of(&String::from_utf8_lossy(&listing.stdout), wanted) {
        let partial = directory.join(format!("{wanted}.partial"));
        let helper = Path::new("/usr/lib/apt/apt-helper");
        progress::run(
            Command::new(helper)
                .arg("-oAPT::Sandbox::User=root")
                .arg("download-file")
                .arg(address)
                .arg(&partial),
            &place::cache()?.join("log/source-file"),
        )?;
        fs::rename(partial, &archive)?;
        return Ok(archive);
    }
    fetched?;
    bail!("apt-get source {package} did not bring {wanted}");
}

fn address_of(listing: &str, wanted: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.trim_matches('\'');
        (words.next()? == wanted).then(|| address.to_owned())
    })
}

/// A command that runs with root's rights, through sudo where we are not root.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if root {
        return Ok(Command::new(program));
    }
    let sudo = Command::new("sudo")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !sudo {
        bail!("{program} needs root: run as root, or install sudo");
    }
    let mut command = Command::new("sudo");
    command.args([
        "--preserve-env=DEBIAN_FRONTEND,http_proxy,https_proxy",
        program,
    ]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_debian_main_releases_only() {
        let listing = "\
http://one/debian/|Debian|bookworm|main
http://one/debian/|Debian|bookworm-updates|main
http://one/debian-security/|Debian-Security|bookworm-security|main
http://two/other/|Node Source|nodistro|main
http://one/debian/|Debian|bookworm|contrib
http://three/debian/|Debian|trixie|main
";
        assert_eq!(
            debian_archives(listing),
            ["http://one/debian/", "http://three/debian/"]
        );
    }

    #[test]
    fn an_address_is_found_by_its_file_name() {
        let listing = "\
Reading package lists...
'http://one/pool/b/bochs_3.0-1.dsc' bochs_3.0-1.dsc 2345 SHA256:00
'http://one/pool/b/bochs_3.0.orig.tar.xz' bochs_3.0.orig.tar.xz 99 SHA256:01
";
        assert_eq!(
            address_of(listing, "bochs_3.0.orig.tar.xz").as_deref(),
            Some("http://one/pool/b/bochs_3.0.orig.tar.xz")
        );
        assert_eq!(address_of(listing, "other"), None);
    }
}
