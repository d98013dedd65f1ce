//! C's types as Windows on x64 has them, whatever machine builds this crate.
//! On a Windows target they are the very types of `core::ffi`.

#![allow(missing_docs, non_camel_case_types)]

pub use core::ffi::{
    c_int, c_longlong, c_schar, c_short, c_uchar, c_uint, c_ulonglong, c_ushort, c_void,
};

pub type c_char = i8;
pub type c_long = i32;
pub type c_ulong = u32;
pub type c_float = f32;
pub type c_double = f64;
