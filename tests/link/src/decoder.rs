//! Finds frames in a stream of bytes.
//!
//! A `Decoder` owns the buffer that its maker gave it and nothing else; one
//! caller uses it at a time. After a bad frame it goes on at the next magic
//! *inside* what it has already received, so that a damaged length swallows no
//! good frame for good.

use crate::frame::{Frame, HEADER_LENGTH, MAX_PAYLOAD, Parse, parse};

/// Incremental decoder over storage of the caller: an array, a boxed slice, a
/// `&mut [u8]`. Its length less [`HEADER_LENGTH`] bounds the payload it accepts.
///
/// Feed bytes, then take frames until there is none:
///
/// ```
/// # use lab_link::{Decoder, Frame, Kind, encode};
/// # let mut wire = [0; 64];
/// # let n = encode(&Frame { kind: Kind::ClientGone, client: 1, id: 2, payload: &[] }, &mut wire).unwrap();
/// # let mut bytes = &wire[..n];
/// let mut decoder = Decoder::new([0u8; 256]);
/// while !bytes.is_empty() {
///     let taken = decoder.feed(bytes);
///     bytes = &bytes[taken..];
///     while let Some(frame) = decoder.next_frame() {
///         assert_eq!(frame.kind, Kind::ClientGone);
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Decoder<S> {
    storage: S,
    start: usize,
    end: usize,
    skipped: u64,
}

impl<S: AsRef<[u8]> + AsMut<[u8]>> Decoder<S> {
    /// A decoder with nothing received yet.
    pub const fn new(storage: S) -> Self {
        Self {
            storage,
            start: 0,
            end: 0,
            skipped: 0,
        }
    }

    /// Takes as many of `bytes` as there is room for and returns their number: at
    /// least one if `next_frame` has said `None` since the last call and the
    /// storage is longer than a header.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let storage = self.storage.as_mut();
        if self.start > 0 {
            storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let taken = bytes.len().min(storage.len() - self.end);
        storage[self.end..self.end + taken].copy_from_slice(&bytes[..taken]);
        self.end += taken;
        taken
    }

    /// The next good frame, or `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        let max_payload = self
            .storage
            .as_ref()
            .len()
            .saturating_sub(HEADER_LENGTH)
            .min(MAX_PAYLOAD);
        let total = loop {
            if self.start == self.end {
                return None;
            }
            match parse(&self.storage.as_ref()[self.start..self.end], max_payload) {
                Parse::Good(_, total) => break total,
                Parse::Unknown(total) => self.skip(total),
                Parse::Bad => self.skip(1),
                Parse::Short => return None,
            }
        };
        let from = self.start;
        self.start += total;
        match parse(&self.storage.as_ref()[from..from + total], max_payload) {
            Parse::Good(frame, _) => Some(frame),
            _ => None,
        }
    }

    /// Bytes thrown away so far because they were no frame.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    fn skip(&mut self, bytes: usize) {
        self.start += bytes;
        self.skipped += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::frame::{Kind, encode};
    use std::{vec, vec::Vec};

    fn wire(id: u32, payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; HEADER_LENGTH + payload.len()];
        let frame = Frame {
            kind: Kind::Ioctl,
            client: 9,
            id,
            payload,
        };
        let length = encode(&frame, &mut buffer).expect("fits");
        assert_eq!(length, buffer.len());
        buffer
    }

    fn decode_in_pieces(stream: &[u8], piece: usize, room: usize) -> (Vec<(u32, Vec<u8>)>, u64) {
        let mut decoder = Decoder::new(vec![0u8; room]);
        let mut seen = Vec::new();
        for mut bytes in stream.chunks(piece) {
            while !bytes.is_empty() {
                let taken = decoder.feed(bytes);
                assert!(taken > 0, "the decoder is stuck");
                bytes = &bytes[taken..];
                while let Some(frame) = decoder.next_frame() {
                    assert_eq!((frame.kind, frame.client), (Kind::Ioctl, 9));
                    seen.push((frame.id, frame.payload.to_vec()));
                }
            }
        }
        (seen, decoder.skipped())
    }

    #[test]
    fn frames_come_out_whole_whatever_the_pieces() {
        let mut stream = wire(1, b"");
        stream.extend(wire(2, b"HVLK inside a payload HVLK"));
        stream.extend(wire(3, &[0x48; 40]));
        for piece in 1..=stream.len() {
            let (seen, skipped) = decode_in_pieces(&stream, piece, 64 + HEADER_LENGTH);
            let ids: Vec<u32> = seen.iter().map(|frame| frame.0).collect();
            assert_eq!(ids, [1, 2, 3]);
            assert_eq!(seen[1].1, b"HVLK inside a payload HVLK");
            assert_eq!(skipped, 0);
        }
    }

    /// One damaged byte loses the frame it stands in and no other.
    #[test]
    fn any_damaged_byte_loses_one_frame() {
        let (first, second, third) = (wire(1, b"one"), wire(2, b"second"), wire(3, b"3"));
        let stream = [first.clone(), second.clone(), third].concat();
        for at in first.len()..first.len() + second.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 0x41;
            // A damaged length may ask for more bytes: a following idle line gives them.
            damaged.extend(vec![0u8; 400]);
            let (seen, _) = decode_in_pieces(&damaged, 7, 256);
            let ids: Vec<u32> = seen.iter().map(|frame| frame.0).collect();
            assert_eq!(ids, [1, 3], "byte {at}");
        }
    }

    #[test]
    fn noise_before_between_and_inside_magic_is_skipped() {
        let mut stream = b"boot noise HVHVLHVL".to_vec();
        let noise = stream.len() as u64;
        stream.extend(wire(5, b"x"));
        stream.extend(b"HVLK");
        stream.extend(wire(6, b"y"));
        let (seen, skipped) = decode_in_pieces(&stream, 3, 64);
        assert_eq!(seen.len(), 2);
        assert_eq!(skipped, noise + 4);
    }

    #[test]
    fn a_frame_longer_than_the_storage_does_not_block_the_line() {
        let mut stream = wire(1, &[0; 100]);
        stream.extend(wire(2, b"short"));
        let (seen, _) = decode_in_pieces(&stream, 16, 64);
        assert_eq!(seen, [(2, b"short".to_vec())]);
    }

    #[test]
    fn an_unknown_kind_is_skipped_as_one() {
        let mut unknown = wire(1, b"abc");
        unknown[5] = 77;
        let crc = crc32fast::hash(&[&unknown[..20], &b"abc"[..]].concat());
        unknown[20..24].copy_from_slice(&crc.to_le_bytes());
        let length = unknown.len() as u64;
        unknown.extend(wire(2, b""));
        let (seen, skipped) = decode_in_pieces(&unknown, 5, 64);
        assert_eq!(seen.len(), 1);
        assert_eq!(skipped, length);
    }

    proptest::proptest! {
        /// Whatever noise stands between frames, each intact frame arrives, in order,
        /// as long as the noise itself holds no magic.
        #[test]
        fn intact_frames_always_arrive(
            payloads in proptest::collection::vec(proptest::collection::vec(0u8..=255, 0..80), 1..6),
            noise in proptest::collection::vec(0x80u8..=255, 0..30),
            piece in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for (id, payload) in payloads.iter().enumerate() {
                stream.extend(&noise);
                stream.extend(wire(u32::try_from(id).expect("small"), payload));
            }
            let (seen, skipped) = decode_in_pieces(&stream, piece, 128);
            let got: Vec<Vec<u8>> = seen.into_iter().map(|frame| frame.1).collect();
            proptest::prop_assert_eq!(&got, &payloads);
            proptest::prop_assert_eq!(skipped, (noise.len() * payloads.len()) as u64);
        }
    }
}
