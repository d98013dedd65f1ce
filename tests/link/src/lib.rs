//! Frames of the device link: the second serial line between the lab's machine
//! and its host (`docs/src/interfaces.md`, section 2).
//!
//! [`Frame`] is one frame, [`encode`] writes it into the caller's buffer,
//! [`Decoder`] finds frames in a byte stream that may lose or corrupt bytes, and
//! [`Message`] is the typed content of a frame's payload.
//!
//! The crate owns no memory but what the caller gives it, allocates nothing and
//! takes no lock: it may be used at any IRQL, and each `Decoder` by one caller at
//! a time.
#![no_std]
#![forbid(unsafe_code)]

mod decoder;
mod frame;
mod message;

pub use decoder::Decoder;
pub use frame::{EncodeError, Frame, HEADER_LENGTH, Kind, MAGIC, MAX_PAYLOAD, VERSION, encode};
pub use message::{Message, ProgramOp, ServiceOp, ServiceState};
