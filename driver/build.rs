//! Link settings of the genuine WDK. Without it the lab's build supplies them.

#[cfg(feature = "wdk")]
fn main() -> Result<(), wdk_build::ConfigError> {
    wdk_build::configure_wdk_binary_build()
}

#[cfg(not(feature = "wdk"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
