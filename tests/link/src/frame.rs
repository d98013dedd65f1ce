//! One frame and its place in bytes.
//!
//! The layout is little-endian and fixed; [`encode`] is the only writer and
//! `parse` the only reader of it. Pure functions, no state.

use core::fmt;

/// First four bytes of each frame, as a little-endian number ("HVLK").
pub const MAGIC: u32 = 0x4B4C_5648;
/// Version of the frame layout.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_LENGTH: usize = 24;
/// Largest payload in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame asks or tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Guest to host, once, when the machine is ready.
    Hello = 1,
    /// Open a device.
    Open = 2,
    /// Device control request.
    Ioctl = 3,
    /// Cancel a pending request of the same client.
    Cancel = 4,
    /// Close a handle.
    Close = 5,
    /// The client has gone: clean up all that it left.
    ClientGone = 6,
    /// Start, stop or query a service (driver).
    Service = 7,
    /// Run a ring-3 program or wait for it.
    Program = 8,
    /// Text command to the machine itself.
    Machine = 9,
    /// Answer to the request with the same client and id.
    Reply = 0x80,
}

impl Kind {
    /// The kind with this number on the wire, if there is one.
    #[must_use]
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Open,
            3 => Self::Ioctl,
            4 => Self::Cancel,
            5 => Self::Close,
            6 => Self::ClientGone,
            7 => Self::Service,
            8 => Self::Program,
            9 => Self::Machine,
            0x80 => Self::Reply,
            _ => return None,
        })
    }
}

/// One frame; the payload is borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it asks or tells.
    pub kind: Kind,
    /// Host process that asks; the broker numbers them.
    pub client: u32,
    /// Request number, unique per client.
    pub id: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

/// Why a frame was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The payload is longer than [`MAX_PAYLOAD`].
    PayloadTooLong,
    /// The buffer is shorter than this many bytes.
    BufferTooShort(usize),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PayloadTooLong => write!(f, "payload longer than {MAX_PAYLOAD} bytes"),
            Self::BufferTooShort(need) => write!(f, "buffer shorter than {need} bytes"),
        }
    }
}

impl core::error::Error for EncodeError {}

/// Writes `frame` to the start of `buffer` and returns its length in bytes.
///
/// # Errors
/// The payload is too long for a frame, or the frame for the buffer; then the
/// buffer is unchanged.
pub fn encode(frame: &Frame<'_>, buffer: &mut [u8]) -> Result<usize, EncodeError> {
    if frame.payload.len() > MAX_PAYLOAD {
        return Err(EncodeError::PayloadTooLong);
    }
    let length = u32::try_from(frame.payload.len()).map_err(|_| EncodeError::PayloadTooLong)?;
    let total = HEADER_LENGTH + frame.payload.len();
    let out = buffer
        .get_mut(..total)
        .ok_or(EncodeError::BufferTooShort(total))?;
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4] = VERSION;
    out[5] = frame.kind as u8;
    out[6..8].copy_from_slice(&0u16.to_le_bytes());
    out[8..12].copy_from_slice(&frame.client.to_le_bytes());
    out[12..16].copy_from_slice(&frame.id.to_le_bytes());
    out[16..20].copy_from_slice(&length.to_le_bytes());
    out[HEADER_LENGTH..].copy_from_slice(frame.payload);
    let crc = checksum(&out[0..20], frame.payload);
    out[20..24].copy_from_slice(&crc.to_le_bytes());
    Ok(total)
}

/// What stands at the start of some bytes.
pub(crate) enum Parse<'a> {
    /// A good frame of this many bytes.
    Good(Frame<'a>, usize),
    /// A frame that this version does not know, whole and intact, of this many bytes.
    Unknown(usize),
    /// No frame begins here.
    Bad,
    /// More bytes are needed to tell.
    Short,
}

/// Reads the frame at the start of `bytes`; a length above `max_payload` is bad.
pub(crate) fn parse(bytes: &[u8], max_payload: usize) -> Parse<'_> {
    let magic = MAGIC.to_le_bytes();
    let seen = bytes.len().min(4);
    if bytes[..seen] != magic[..seen] {
        return Parse::Bad;
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
        return Parse::Short;
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let length = word(16) as usize;
    if header[4] != VERSION || length > max_payload {
        return Parse::Bad;
    }
    let Some(payload) = rest.get(..length) else {
        return Parse::Short;
    };
    if checksum(&header[0..20], payload) != word(20) {
        return Parse::Bad;
    }
    let total = HEADER_LENGTH + length;
    match Kind::from_wire(header[5]) {
        Some(kind) => Parse::Good(
            Frame {
                kind,
                client: word(8),
                id: word(12),
                payload,
            },
            total,
        ),
        None => Parse::Unknown(total),
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on the wire are the contract with other tools.
    #[test]
    fn a_known_frame_has_known_bytes() {
        let frame = Frame {
            kind: Kind::Machine,
            client: 2,
            id: 0x0102,
            payload: b"ok",
        };
        let mut buffer = [0xAA; 32];
        assert_eq!(encode(&frame, &mut buffer), Ok(26));
        assert_eq!(
            &buffer[..20],
            b"HVLK\x01\x09\0\0\x02\0\0\0\x02\x01\0\0\x02\0\0\0"
        );
        assert_eq!(&buffer[24..26], b"ok");
        assert_eq!(buffer[26], 0xAA);
        // CRC-32 (IEEE) of b"123456789" is 0xCBF43926: the polynomial is the right one.
        assert_eq!(checksum(b"1234", b"56789"), 0xCBF4_3926);
        assert_eq!(buffer[20..24], checksum(&buffer[..20], b"ok").to_le_bytes());
    }

    #[test]
    fn every_kind_survives_its_number() {
        let known = (0..=255u8).filter_map(Kind::from_wire);
        assert_eq!(known.clone().count(), 10);
        for kind in known {
            assert_eq!(Kind::from_wire(kind as u8), Some(kind));
        }
    }

    #[test]
    fn a_short_buffer_stays_unchanged() {
        let frame = Frame {
            kind: Kind::Close,
            client: 0,
            id: 0,
            payload: &[1; 8],
        };
        let mut buffer = [7; 31];
        assert_eq!(
            encode(&frame, &mut buffer),
            Err(EncodeError::BufferTooShort(32))
        );
        assert_eq!(buffer, [7; 31]);
    }

    #[test]
    fn a_long_payload_is_refused() {
        extern crate std;
        let payload = std::vec![0; MAX_PAYLOAD + 1];
        let mut buffer = std::vec![0; MAX_PAYLOAD + 64];
        let frame = Frame {
            kind: Kind::Reply,
            client: 0,
            id: 0,
            payload: &payload,
        };
        assert_eq!(
            encode(&frame, &mut buffer),
            Err(EncodeError::PayloadTooLong)
        );
    }
}
