//! Lays out a boot image from the command line:
//! `bootimg KERNEL OUT_ROM OUT_IMAGE "command line" [FILE...]`.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, rom, image, cmdline, files @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: bootimg KERNEL OUT_ROM OUT_IMAGE CMDLINE [FILE...]");
    };
    let kernel = fs::read(kernel).with_context(|| kernel.clone())?;
    let mut contents = Vec::new();
    for path in files {
        let name = Path::new(path)
            .file_name()
            .context("no file name")?
            .to_string_lossy();
        contents.push((
            name.into_owned(),
            fs::read(path).with_context(|| path.clone())?,
        ));
    }
    let built = bootimg::build(&bootimg::Spec {
        kernel: &kernel,
        files: contents,
        cmdline: cmdline.clone(),
    })?;
    fs::write(rom, built.rom)?;
    fs::write(image, built.image)?;
    Ok(())
}
