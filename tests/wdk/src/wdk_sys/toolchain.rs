//! Symbols that the compiler asks of a driver's runtime library.
//!
//! None of them is ever called: drivers are built with `panic = "abort"` and do
//! no floating point. They differ in their result so that the linker does not
//! fold them into one.

#![allow(missing_docs, non_upper_case_globals, non_snake_case)]

// SAFETY: no other symbol of this name: drivers link no C runtime.
#[cfg(windows)]
#[unsafe(no_mangle)]
pub(super) static _fltused: () = ();

// SAFETY: as above.
#[cfg(all(windows, panic = "abort"))]
#[unsafe(no_mangle)]
pub(super) const extern "system" fn __CxxFrameHandler3() -> i32 {
    0
}

// SAFETY: as above.
#[cfg(all(windows, panic = "abort"))]
#[unsafe(no_mangle)]
pub(super) const extern "system" fn __CxxFrameHandler4() -> i32 {
    1
}

// SAFETY: as above.
#[cfg(all(windows, panic = "abort"))]
#[unsafe(no_mangle)]
pub(super) const extern "system" fn __GSHandlerCheck_EH4() -> i32 {
    2
}
