//! Link arguments of `ntoskrnl.exe`: what the exports are that rustc does not
//! write by itself, and which section is discarded after boot.

/// Data that drivers import. rustc exports `#[no_mangle]` statics of a cdylib as
/// data already; a line here is for those that come from elsewhere.
const DATA_EXPORTS: &[&str] = &[];

/// Functions that come from `compiler_builtins`, not from this crate's own code.
const FUNCTION_EXPORTS: &[&str] = &["memcpy", "memmove", "memset", "memcmp", "__chkstk"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    if !target.contains("windows-msvc") {
        return;
    }
    for name in DATA_EXPORTS {
        println!("cargo:rustc-cdylib-link-arg=/EXPORT:{name},DATA");
    }
    for name in FUNCTION_EXPORTS {
        println!("cargo:rustc-cdylib-link-arg=/EXPORT:{name}");
    }
    println!("cargo:rustc-cdylib-link-arg=/SECTION:INIT,ERD");
}
