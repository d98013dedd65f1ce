//! The formatted output of `DbgPrint` and of the kernel's `_snprintf` family.
//!
//! Pure: arguments and the strings they point to come through [`Source`], so
//! the host tests run this very file. Conversions are those of Microsoft's
//! "Format specification syntax: printf and wprintf functions" without floating
//! point (which `DbgPrint` documents as unsupported), with `%Z` and `%wZ` for
//! counted strings.

/// Where the variable arguments come from.
pub(crate) trait Source {
    /// The next 8-byte slot of the argument list.
    fn word(&mut self) -> u64;
    /// Byte `index` of the narrow string at `pointer`.
    fn byte(&self, pointer: u64, index: usize) -> u8;
    /// Unit `index` of the wide string at `pointer`.
    fn unit(&self, pointer: u64, index: usize) -> u16;
    /// (length in bytes, buffer) of the counted string at `pointer`.
    fn counted(&self, pointer: u64) -> (usize, u64);
}

/// Size prefixes that matter on x64.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Byte,
    Short,
    Int,
    Long,
    Quad,
}

/// One conversion specification, after its `%`.
#[derive(Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each flag of the format"
)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    size: Size,
    wide: bool,
}

/// Longest field that is padded; more is an error of the caller's format.
const WIDEST: usize = 512;

/// Formats `format` with the arguments of `source`, unit by unit, into `out`.
///
/// In the wide variants of the functions (`wide_default`) plain `%s` and `%c`
/// are wide, and `%S` and `%C` are narrow.
pub(crate) fn format(
    format: &[u8],
    wide_default: bool,
    source: &mut dyn Source,
    out: &mut dyn FnMut(u16),
) {
    let mut rest = format;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out(u16::from(byte));
            continue;
        }
        let (spec, tail) = parse(rest, source);
        let Some((&kind, tail)) = tail.split_first() else {
            return;
        };
        rest = tail;
        convert(kind, spec, wide_default, source, out);
    }
}

fn parse<'a>(mut rest: &'a [u8], source: &mut dyn Source) -> (Spec, &'a [u8]) {
    let mut spec = Spec {
        left: false,
        plus: false,
        space: false,
        alternate: false,
        zero: false,
        width: 0,
        precision: None,
        size: Size::Int,
        wide: false,
    };
    while let Some((&flag, tail)) = rest.split_first() {
        match flag {
            b'-' => spec.left = true,
            b'+' => spec.plus = true,
            b' ' => spec.space = true,
            b'#' => spec.alternate = true,
            b'0' => spec.zero = true,
            _ => break,
        }
        rest = tail;
    }
    let (width, tail) = number(rest, source);
    rest = tail;
    if let Some(width) = width {
        spec.left |= width < 0;
        spec.width = usize::try_from(width.unsigned_abs())
            .unwrap_or(0)
            .min(WIDEST);
    }
    if let Some((b'.', tail)) = rest.split_first() {
        let (precision, tail) = number(tail, source);
        rest = tail;
        // A negative precision counts as none.
        spec.precision = usize::try_from(precision.unwrap_or(0))
            .ok()
            .map(|p| p.min(1 << 20));
    }
    (spec.size, spec.wide, rest) = size(rest);
    (spec, rest)
}

fn number<'a>(mut rest: &'a [u8], source: &mut dyn Source) -> (Option<i32>, &'a [u8]) {
    if let Some((b'*', tail)) = rest.split_first() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an int argument is 32 bits"
        )]
        return (Some(source.word() as i32), tail);
    }
    let mut value = None;
    while let Some((&digit, tail)) = rest.split_first() {
        if !digit.is_ascii_digit() {
            break;
        }
        value = Some(
            value
                .unwrap_or(0i32)
                .saturating_mul(10)
                .saturating_add(i32::from(digit - b'0')),
        );
        rest = tail;
    }
    (value, rest)
}

fn size(rest: &[u8]) -> (Size, bool, &[u8]) {
    const PREFIXES: [(&[u8], Size, bool); 11] = [
        (b"I64", Size::Quad, false),
        (b"I32", Size::Int, false),
        (b"I", Size::Quad, false),
        (b"ll", Size::Quad, false),
        (b"l", Size::Long, true),
        (b"hh", Size::Byte, false),
        (b"h", Size::Short, false),
        (b"w", Size::Int, true),
        (b"z", Size::Quad, false),
        (b"t", Size::Quad, false),
        (b"j", Size::Quad, false),
    ];
    for (prefix, size, wide) in PREFIXES {
        if let Some(tail) = rest.strip_prefix(prefix) {
            return (size, wide, tail);
        }
    }
    (Size::Int, false, rest)
}

fn convert(
    kind: u8,
    spec: Spec,
    wide_default: bool,
    source: &mut dyn Source,
    out: &mut dyn FnMut(u16),
) {
    match kind {
        b'd' | b'i' => {
            let value = signed(source.word(), spec.size);
            let sign: &[u8] = match (value < 0, spec.plus, spec.space) {
                (true, ..) => b"-",
                (_, true, _) => b"+",
                (_, _, true) => b" ",
                _ => b"",
            };
            integer(value.unsigned_abs(), 10, false, sign, spec, out);
        }
        b'u' => integer(
            unsigned(source.word(), spec.size),
            10,
            false,
            b"",
            spec,
            out,
        ),
        b'o' => integer(unsigned(source.word(), spec.size), 8, false, b"", spec, out),
        b'x' | b'X' => {
            let value = unsigned(source.word(), spec.size);
            let prefix: &[u8] = match (spec.alternate && value != 0, kind) {
                (true, b'x') => b"0x",
                (true, _) => b"0X",
                _ => b"",
            };
            integer(value, 16, kind == b'X', prefix, spec, out);
        }
        b'p' => {
            let spec = Spec {
                precision: Some(16),
                ..spec
            };
            integer(source.word(), 16, true, b"", spec, out);
        }
        b'c' | b'C' => {
            let wide = is_wide(spec, kind == b'C', wide_default);
            let value = source.word();
            let [low, high, ..] = value.to_le_bytes();
            let unit = u16::from_le_bytes([low, if wide { high } else { 0 }]);
            padded(1, spec, out, &mut |out| out(unit));
        }
        b's' | b'S' => {
            let wide = is_wide(spec, kind == b'S', wide_default);
            let pointer = source.word();
            if pointer == 0 {
                return literal(b"(null)", spec, out);
            }
            let limit = spec.precision.unwrap_or(usize::MAX);
            let at = |index| {
                if wide {
                    source.unit(pointer, index)
                } else {
                    u16::from(source.byte(pointer, index))
                }
            };
            let length = (0..limit).take_while(|&index| at(index) != 0).count();
            padded(length, spec, out, &mut |out| {
                (0..length).for_each(|index| out(at(index)));
            });
        }
        b'Z' => {
            let pointer = source.word();
            if pointer == 0 {
                return literal(b"(null)", spec, out);
            }
            let (bytes, buffer) = source.counted(pointer);
            let units = if spec.wide { bytes / 2 } else { bytes };
            let length = if buffer == 0 {
                0
            } else {
                units.min(spec.precision.unwrap_or(units))
            };
            padded(length, spec, out, &mut |out| {
                for index in 0..length {
                    out(if spec.wide {
                        source.unit(buffer, index)
                    } else {
                        u16::from(source.byte(buffer, index))
                    });
                }
            });
        }
        other => out(u16::from(other)),
    }
}

const fn is_wide(spec: Spec, capital: bool, wide_default: bool) -> bool {
    if spec.wide {
        return true;
    }
    // `%hs` and `%hS` are narrow everywhere.
    !matches!(spec.size, Size::Short) && capital != wide_default
}

fn signed(word: u64, size: Size) -> i64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the size prefix says how much counts"
    )]
    match size {
        Size::Byte => i64::from(word as i8),
        Size::Short => i64::from(word as i16),
        Size::Int | Size::Long => i64::from(word as i32),
        Size::Quad => word.cast_signed(),
    }
}

const fn unsigned(word: u64, size: Size) -> u64 {
    match size {
        Size::Byte => word & 0xFF,
        Size::Short => word & 0xFFFF,
        Size::Int | Size::Long => word & 0xFFFF_FFFF,
        Size::Quad => word,
    }
}

fn literal(text: &[u8], spec: Spec, out: &mut dyn FnMut(u16)) {
    padded(text.len(), spec, out, &mut |out| {
        for &byte in text {
            out(u16::from(byte));
        }
    });
}

/// Writes a field's text to the sink that it is given.
type Body<'a> = dyn FnMut(&mut dyn FnMut(u16)) + 'a;

fn padded(length: usize, spec: Spec, out: &mut dyn FnMut(u16), body: &mut Body<'_>) {
    let padding = spec.width.saturating_sub(length);
    let fill = u16::from(if spec.zero && !spec.left { b'0' } else { b' ' });
    if !spec.left {
        (0..padding).for_each(|_| out(fill));
    }
    body(out);
    if spec.left {
        (0..padding).for_each(|_| out(u16::from(b' ')));
    }
}

fn integer(
    mut value: u64,
    base: u64,
    upper: bool,
    prefix: &[u8],
    spec: Spec,
    out: &mut dyn FnMut(u16),
) {
    let digits: &[u8; 16] = if upper {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    };
    let mut buffer = [0u8; 24];
    let mut count = 0;
    while value != 0 {
        buffer[count] = usize::try_from(value % base).map_or(b'?', |digit| digits[digit]);
        value /= base;
        count += 1;
    }
    let mut least = spec.precision.unwrap_or(1).min(WIDEST);
    if spec.zero && !spec.left && spec.precision.is_none() {
        least = least.max(spec.width.saturating_sub(prefix.len()));
    }
    let zeros = least.saturating_sub(count);
    let spec = Spec {
        zero: false,
        ..spec
    };
    padded(prefix.len() + zeros + count, spec, out, &mut |out| {
        for &byte in prefix {
            out(u16::from(byte));
        }
        (0..zeros).for_each(|_| out(u16::from(b'0')));
        (0..count)
            .rev()
            .for_each(|index| out(u16::from(buffer[index])));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slots<'a> {
        words: &'a [u64],
        narrow: &'a [u8],
        wide: &'a [u16],
    }

    // Pointer 0x1000 is the narrow string, 0x2000 the wide one, 0x3000 and
    // 0x4000 counted strings over them.
    impl Source for Slots<'_> {
        fn word(&mut self) -> u64 {
            let (&first, rest) = self.words.split_first().unwrap();
            self.words = rest;
            first
        }
        fn byte(&self, pointer: u64, index: usize) -> u8 {
            assert_eq!(pointer, 0x1000);
            self.narrow.get(index).copied().unwrap_or(0)
        }
        fn unit(&self, pointer: u64, index: usize) -> u16 {
            assert_eq!(pointer, 0x2000);
            self.wide.get(index).copied().unwrap_or(0)
        }
        fn counted(&self, pointer: u64) -> (usize, u64) {
            match pointer {
                0x3000 => (self.narrow.len(), 0x1000),
                0x4000 => (self.wide.len() * 2, 0x2000),
                _ => panic!("no such string"),
            }
        }
    }

    fn text(pattern: &str, words: &[u64]) -> String {
        let wide: Vec<u16> = "weit\u{20AC}".encode_utf16().collect();
        let mut source = Slots {
            words,
            narrow: b"eng",
            wide: &wide,
        };
        let mut units = Vec::new();
        format(pattern.as_bytes(), false, &mut source, &mut |unit| {
            units.push(unit);
        });
        String::from_utf16(&units).unwrap()
    }

    #[test]
    fn integers() {
        assert_eq!(
            text("%d %u %x", &[u64::from(u32::MAX), u64::MAX, 0xBEEF]),
            "-1 4294967295 beef"
        );
        assert_eq!(
            text("%lld|%I64x|%hu", &[u64::MAX, 0x0001_2345_6789, 0x1_2345]),
            "-1|123456789|9029"
        );
        assert_eq!(
            text("%08X|%-5d|%5d|%+d", &[0xAB, 7, 7, 7]),
            "000000AB|7    |    7|+7"
        );
        assert_eq!(
            text("%#x|%#06x|%.4d|%i", &[255, 255, 12, 0]),
            "0xff|0x00ff|0012|0"
        );
        assert_eq!(text("%p", &[0xFFFF_8000_0000_0123]), "FFFF800000000123");
        assert_eq!(text("%*d|%-*d|", &[4, 1, 3, 2]), "   1|2  |");
        assert_eq!(
            text("%zx %Ix", &[u64::MAX, 1 << 40]),
            "ffffffffffffffff 10000000000"
        );
    }

    #[test]
    fn strings() {
        assert_eq!(
            text("[%s] [%.2s] [%5s] [%-5s]", &[0x1000; 4]),
            "[eng] [en] [  eng] [eng  ]"
        );
        assert_eq!(
            text("%ws %S %ls", &[0x2000; 3]),
            "weit\u{20AC} weit\u{20AC} weit\u{20AC}"
        );
        assert_eq!(text("%wZ|%Z", &[0x4000, 0x3000]), "weit\u{20AC}|eng");
        assert_eq!(text("%s|%wZ", &[0, 0]), "(null)|(null)");
        assert_eq!(text("%c%C%%", &[u64::from(b'a'), 0x62]), "ab%");
    }

    #[test]
    fn a_format_that_ends_in_a_specification_ends_there() {
        assert_eq!(text("a%", &[]), "a");
        assert_eq!(text("a%08", &[]), "a");
        assert_eq!(text("a%q", &[]), "aq");
    }
}
