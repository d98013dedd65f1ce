//! `RTL_BITMAP` routines: the caller's bits, numbered from 0, 32 to a word.
//!
//! Any IRQL; the caller serialises.

use wdk_standin::wdk_sys::{BOOLEAN, PRTL_BITMAP, PULONG, RTL_BITMAP, ULONG};

use crate::ob::argument::{borrow, own, put};

fn word<'a>(map: &RTL_BITMAP, index: u32) -> &'a mut u32 {
    own!(map.Buffer.wrapping_add(index as usize / 32))
}

fn get(map: &RTL_BITMAP, index: u32) -> bool {
    *word(map, index) >> (index % 32) & 1 != 0
}

fn set(map: &RTL_BITMAP, index: u32, value: bool) {
    let bit = 1 << (index % 32);
    let word = word(map, index);
    *word = if value { *word | bit } else { *word & !bit };
}

fn fill(map: PRTL_BITMAP, start: u32, count: u32, value: bool, api: &str) {
    let map = &*borrow!(map, api);
    crate::require!(
        start
            .checked_add(count)
            .is_some_and(|end| end <= map.SizeOfBitMap),
        api,
        "bits {} to {} of a map of {}",
        start,
        u64::from(start) + u64::from(count),
        map.SizeOfBitMap
    );
    (start..start + count).for_each(|index| set(map, index, value));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInitializeBitMap(map: PRTL_BITMAP, buffer: PULONG, bits: ULONG) {
    put!(
        map,
        RTL_BITMAP {
            SizeOfBitMap: bits,
            Buffer: buffer
        },
        "RtlInitializeBitMap"
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlSetBits(map: PRTL_BITMAP, start: ULONG, count: ULONG) {
    fill(map, start, count, true, "RtlSetBits");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlClearBits(map: PRTL_BITMAP, start: ULONG, count: ULONG) {
    fill(map, start, count, false, "RtlClearBits");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlSetAllBits(map: PRTL_BITMAP) {
    let count = borrow!(map, "RtlSetAllBits").SizeOfBitMap;
    fill(map, 0, count, true, "RtlSetAllBits");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlClearAllBits(map: PRTL_BITMAP) {
    let count = borrow!(map, "RtlClearAllBits").SizeOfBitMap;
    fill(map, 0, count, false, "RtlClearAllBits");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlSetBit(map: PRTL_BITMAP, index: ULONG) {
    fill(map, index, 1, true, "RtlSetBit");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlClearBit(map: PRTL_BITMAP, index: ULONG) {
    fill(map, index, 1, false, "RtlClearBit");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlTestBit(map: PRTL_BITMAP, index: ULONG) -> BOOLEAN {
    let map = &*borrow!(map, "RtlTestBit");
    BOOLEAN::from(index < map.SizeOfBitMap && get(map, index))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlNumberOfSetBits(map: PRTL_BITMAP) -> ULONG {
    let map = &*borrow!(map, "RtlNumberOfSetBits");
    (0..map.SizeOfBitMap)
        .map(|index| u32::from(get(map, index)))
        .sum()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlNumberOfClearBits(map: PRTL_BITMAP) -> ULONG {
    let map = &*borrow!(map, "RtlNumberOfClearBits");
    (0..map.SizeOfBitMap)
        .map(|index| u32::from(!get(map, index)))
        .sum()
}

fn all(map: PRTL_BITMAP, start: u32, count: u32, value: bool, api: &str) -> BOOLEAN {
    let map = &*borrow!(map, api);
    let inside = start
        .checked_add(count)
        .is_some_and(|end| end <= map.SizeOfBitMap);
    BOOLEAN::from(
        inside && count != 0 && (start..start + count).all(|index| get(map, index) == value),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAreBitsSet(
    map: PRTL_BITMAP,
    start: ULONG,
    count: ULONG,
) -> BOOLEAN {
    all(map, start, count, true, "RtlAreBitsSet")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAreBitsClear(
    map: PRTL_BITMAP,
    start: ULONG,
    count: ULONG,
) -> BOOLEAN {
    all(map, start, count, false, "RtlAreBitsClear")
}

/// First run of `count` bits of this value, from `hint` on and then from 0;
/// `u32::MAX` if there is none.
fn find(map: PRTL_BITMAP, count: u32, hint: u32, value: bool, api: &str) -> u32 {
    let map = &*borrow!(map, api);
    let bits = map.SizeOfBitMap;
    let hint = if hint < bits { hint } else { 0 };
    let Some(last) = bits.checked_sub(count) else {
        return u32::MAX;
    };
    let run = |start: u32| (start..start + count).all(|index| get(map, index) == value);
    (hint..=last)
        .chain(0..hint.min(last + 1))
        .find(|&start| run(start))
        .unwrap_or(u32::MAX)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFindClearBits(
    map: PRTL_BITMAP,
    count: ULONG,
    hint: ULONG,
) -> ULONG {
    find(map, count, hint, false, "RtlFindClearBits")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFindSetBits(
    map: PRTL_BITMAP,
    count: ULONG,
    hint: ULONG,
) -> ULONG {
    find(map, count, hint, true, "RtlFindSetBits")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFindClearBitsAndSet(
    map: PRTL_BITMAP,
    count: ULONG,
    hint: ULONG,
) -> ULONG {
    let start = find(map, count, hint, false, "RtlFindClearBitsAndSet");
    if start != u32::MAX {
        fill(map, start, count, true, "RtlFindClearBitsAndSet");
    }
    start
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFindSetBitsAndClear(
    map: PRTL_BITMAP,
    count: ULONG,
    hint: ULONG,
) -> ULONG {
    let start = find(map, count, hint, true, "RtlFindSetBitsAndClear");
    if start != u32::MAX {
        fill(map, start, count, false, "RtlFindSetBitsAndClear");
    }
    start
}
