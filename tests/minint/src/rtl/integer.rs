//! Numbers and text; random numbers.
//!
//! Pure but for the caller's seed.

use wdk_standin::wdk_sys::{NTSTATUS, PCSZ, ULONG, UNICODE_STRING};

use super::status::{STATUS_INVALID_PARAMETER, STATUS_SUCCESS};
use crate::ob::argument::{borrow, put};

/// Digits of `value` in base 2, 8, 10 or 16 (0 means 10), upper case, least
/// significant last.
pub(super) fn to_unicode(
    mut value: u64,
    base: u32,
    string: &mut UNICODE_STRING,
    api: &str,
) -> NTSTATUS {
    let base = match base {
        0 | 10 => 10,
        2 | 8 | 16 => u64::from(base),
        _ => return STATUS_INVALID_PARAMETER,
    };
    let mut digits = [0u16; 64];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = u16::from(b"0123456789ABCDEF"[(value % base) as usize]);
        value /= base;
        if value == 0 {
            return super::unicode::assign(string, &digits[at..], api);
        }
    }
}

/// Reads an integer as `RtlCharToInteger` documents: blanks, a sign, then `0x`,
/// `0o` or `0b` when `base` is 0; ends at the first other character.
pub(super) fn parse(units: impl Iterator<Item = u16>, base: u32) -> Option<u32> {
    let mut rest = units.skip_while(|&unit| unit <= u16::from(b' ')).peekable();
    let negative = rest.next_if(|&unit| unit == u16::from(b'-')).is_some();
    if !negative {
        let _ = rest.next_if(|&unit| unit == u16::from(b'+'));
    }
    let mut base = base;
    if base == 0 {
        base = 10;
        if rest.next_if(|&unit| unit == u16::from(b'0')).is_some() {
            for (letter, meant) in [(b'x', 16), (b'o', 8), (b'b', 2)] {
                if rest.next_if(|&unit| unit == u16::from(letter)).is_some() {
                    base = meant;
                    break;
                }
            }
        }
    }
    if ![2, 8, 10, 16].contains(&base) {
        return None;
    }
    let mut value = 0u32;
    for unit in rest {
        let Some(digit) = char::from_u32(u32::from(unit)).and_then(|c| c.to_digit(base)) else {
            break;
        };
        value = value.wrapping_mul(base).wrapping_add(digit);
    }
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCharToInteger(
    text: PCSZ,
    base: ULONG,
    value: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "RtlCharToInteger";
    let bytes = super::crt::bytes(text.cast(), API);
    let Some(number) = parse(bytes.iter().map(|&byte| u16::from(byte)), base) else {
        return STATUS_INVALID_PARAMETER;
    };
    put!(value, number, API);
    STATUS_SUCCESS
}

/// One step of the minimal standard generator (Lehmer, modulus 2^31 - 1), which
/// is what `RtlRandom` documents as its family.
fn step(seed: &mut u32) -> u32 {
    let next = (u64::from(*seed) * 0x7FFF_FFED + 0x7FFF_FFC3) % 0x7FFF_FFFF;
    *seed = u32::try_from(next).unwrap_or(0);
    *seed
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlRandom(seed: *mut ULONG) -> ULONG {
    step(borrow!(seed, "RtlRandom"))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlRandomEx(seed: *mut ULONG) -> ULONG {
    step(borrow!(seed, "RtlRandomEx"))
}
