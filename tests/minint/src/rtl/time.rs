//! Calendar time, in units of 100 ns since 1601 (proleptic Gregorian).
//!
//! Pure; any IRQL. The time zone is UTC.

use wdk_standin::wdk_sys::{BOOLEAN, PLARGE_INTEGER, PTIME_FIELDS, TIME_FIELDS, ULONG};

use crate::ob::argument::{borrow, own, put};

const SECOND: i64 = 10_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Seconds between 1601 and 1970.
const EPOCH_1970: i64 = 11_644_473_600;

fn quad(value: PLARGE_INTEGER) -> i64 {
    *own!(value.cast::<i64>())
}

/// Year, month, day of a day number since 1601-01-01 (civil-from-days on eras
/// of 400 years).
fn civil(days: i64) -> (i64, i64, i64) {
    // Shift to the 1st of March of the year 0.
    let days = days + 584_694;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 584_694
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlTimeToTimeFields(time: PLARGE_INTEGER, fields: PTIME_FIELDS) {
    const API: &str = "RtlTimeToTimeFields";
    let time = quad(time);
    let (year, month, day) = civil(time.div_euclid(DAY));
    let rest = time.rem_euclid(DAY) / 10_000;
    let small = |value: i64| i16::try_from(value).unwrap_or(0);
    put!(
        fields,
        TIME_FIELDS {
            Year: small(year),
            Month: small(month),
            Day: small(day),
            Hour: small(rest / 3_600_000),
            Minute: small(rest / 60_000 % 60),
            Second: small(rest / 1000 % 60),
            Milliseconds: small(rest % 1000),
            // 1601-01-01 was a Monday.
            Weekday: small((time.div_euclid(DAY) + 1).rem_euclid(7)),
        },
        API
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlTimeFieldsToTime(
    fields: PTIME_FIELDS,
    time: PLARGE_INTEGER,
) -> BOOLEAN {
    const API: &str = "RtlTimeFieldsToTime";
    let fields = &*borrow!(fields, API);
    let valid = fields.Year >= 1601
        && (1..=12).contains(&fields.Month)
        && (1..=31).contains(&fields.Day)
        && (0..24).contains(&fields.Hour)
        && (0..60).contains(&fields.Minute)
        && (0..60).contains(&fields.Second)
        && (0..1000).contains(&fields.Milliseconds);
    if !valid {
        return 0;
    }
    let days = days(fields.Year.into(), fields.Month.into(), fields.Day.into());
    let seconds =
        i64::from(fields.Hour) * 3600 + i64::from(fields.Minute) * 60 + i64::from(fields.Second);
    let value = days * DAY + seconds * SECOND + i64::from(fields.Milliseconds) * 10_000;
    put!(time.cast::<i64>(), value, API);
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlTimeToSecondsSince1970(
    time: PLARGE_INTEGER,
    seconds: *mut ULONG,
) -> BOOLEAN {
    let Ok(value) = u32::try_from(quad(time) / SECOND - EPOCH_1970) else {
        return 0;
    };
    put!(seconds, value, "RtlTimeToSecondsSince1970");
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExSystemTimeToLocalTime(
    system: PLARGE_INTEGER,
    local: PLARGE_INTEGER,
) {
    put!(local.cast::<i64>(), quad(system), "ExSystemTimeToLocalTime");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExLocalTimeToSystemTime(
    local: PLARGE_INTEGER,
    system: PLARGE_INTEGER,
) {
    put!(system.cast::<i64>(), quad(local), "ExLocalTimeToSystemTime");
}
