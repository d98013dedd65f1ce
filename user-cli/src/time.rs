//! Windows time as text.

/// RFC 3339 in UTC with all seven digits, from 100 ns since 1601.
pub(crate) fn rfc3339(time: u64) -> String {
    let ticks = time % 10_000_000;
    let seconds = time / 10_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ticks:07}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The Gregorian date of a day counted from 1601-01-01, the first day of a
/// 400-year cycle.
fn civil(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    let mut year = 1601 + days / CYCLE * 400;
    let mut day = days % CYCLE;
    // The last day of a cycle would begin a fifth century, that of four years a
    // fifth year: both belong to the one before.
    let centuries = (day / 36_524).min(3);
    day -= centuries * 36_524;
    let fours = day / 1461;
    day -= fours * 1461;
    let years = (day / 365).min(3);
    day -= years * 365;
    year += centuries * 100 + fours * 4 + years;
    let leap = u64::from(
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)),
    );
    let lengths = [31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in (1..).zip(lengths) {
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 ns between 1601-01-01 and 1970-01-01.
    const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

    #[test]
    fn known_instants() {
        assert_eq!(rfc3339(0), "1601-01-01T00:00:00.0000000Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.0000000Z");
        let unix = |seconds: u64| rfc3339(UNIX_EPOCH + seconds * 10_000_000 + 1_234_567);
        assert_eq!(unix(951_782_400), "2000-02-29T00:00:00.1234567Z");
        assert_eq!(unix(1_767_225_599), "2025-12-31T23:59:59.1234567Z");
        assert_eq!(unix(4_107_542_400), "2100-03-01T00:00:00.1234567Z");
        assert!(rfc3339(u64::MAX).starts_with("60056-"));
    }

    #[test]
    fn days_follow_each_other() {
        let mut last = (1600, 12, 31);
        for day in 0..300_000 {
            let next = civil(day);
            assert!(next > last, "{last:?} {next:?}");
            last = next;
        }
    }
}
