//! Links the driver that the specimen carries, with mingw-w64.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=payload/payload.c");
    println!("cargo::rerun-if-env-changed=HVDETECT_MINGW_GCC");
    let compiler =
        env::var_os("HVDETECT_MINGW_GCC").unwrap_or_else(|| "x86_64-w64-mingw32-gcc".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let status = Command::new(&compiler)
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-s"])
        .args(["-ffreestanding", "-fno-builtin", "-fno-ident", "-nostdlib"])
        .arg("-fno-asynchronous-unwind-tables")
        // The DDK headers of mingw-w64 lie in a folder of their own.
        .args(["-idirafter", "/usr/x86_64-w64-mingw32/include/ddk"])
        .arg("-Wl,--subsystem,native,--entry,Run,--dynamicbase,--nxcompat")
        .arg("-Wl,--image-base,0x140000000,--no-insert-timestamp")
        .arg("-o")
        .arg(out.join("payload.sys"))
        .args(["payload/payload.c", "-lntoskrnl"])
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed: {status}", compiler.display()),
        Err(error) => panic!(
            "{}: {error}; install gcc-mingw-w64-x86-64 or set HVDETECT_MINGW_GCC",
            compiler.display()
        ),
    }
}
