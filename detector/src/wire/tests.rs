//! The wire format, frozen.
//!
//! A change here breaks driver and tool of different versions: raise
//! [`PROTOCOL`] with it.

use super::*;
use core::mem::offset_of;

#[test]
fn the_codes_are_frozen() {
    // Device 0x8D48, function from 0x800, METHOD_BUFFERED, and never
    // FILE_ANY_ACCESS. No code reads or writes memory, MSRs or ports.
    let expected = [
        (0x8D48_6000, "version"),
        (0x8D48_E004, "start"),
        (0x8D48_E008, "stop"),
        (0x8D48_600C, "status"),
        (0x8D48_6010, "wait"),
        (0x8D48_6014, "evidence"),
    ];
    assert_eq!(CODES, expected);
    for (code, name) in CODES {
        assert_eq!(code & 3, 0, "{name} is METHOD_BUFFERED");
        assert_ne!((code >> 14) & 3, 0, "{name} needs access rights");
        assert!((code >> 2) & 0xfff >= 0x800, "{name} is a vendor function");
    }
}

#[test]
fn the_layouts_are_frozen() {
    assert_eq!(size_of::<Header>(), 16);
    assert_eq!(size_of::<VersionReply>(), 24);
    assert_eq!(size_of::<StartRequest>(), 24);
    assert_eq!(size_of::<StartReply>(), 32);
    assert_eq!(size_of::<StopRequest>(), 24);
    assert_eq!(size_of::<StopReply>(), 32);
    assert_eq!(size_of::<WaitRequest>(), 32);
    assert_eq!(size_of::<WaitReply>(), 120);
    assert_eq!(size_of::<EvidenceRequest>(), 24);
    assert_eq!(size_of::<EvidenceReply>(), 4128);
    assert_eq!(size_of::<Pages>(), 40);
    assert_eq!(size_of::<Accounts>(), 80);
    assert_eq!(size_of::<StatusReply>(), 912);
    assert_eq!(offset_of!(StatusReply, features), 32);
    assert_eq!(offset_of!(StatusReply, exits), 48);
    assert_eq!(offset_of!(StatusReply, pages), 696);
    assert_eq!(offset_of!(StatusReply, flips), 792);
    assert_eq!(offset_of!(StatusReply, notes), 824);
    assert_eq!(offset_of!(StatusReply, accounts), 832);
    assert_eq!(size_of::<Place>(), 168);
    assert_eq!(size_of::<ImageChange>(), 88);
    assert_eq!(size_of::<Finding>(), 1376);
    assert_eq!(offset_of!(Finding, rip), 48);
    assert_eq!(offset_of!(Finding, gprs), 112);
    assert_eq!(offset_of!(Finding, actor), 240);
    assert_eq!(offset_of!(Finding, victim), 408);
    assert_eq!(offset_of!(Finding, returns), 576);
    assert_eq!(offset_of!(Finding, old), 776);
    assert_eq!(offset_of!(Finding, sha256), 904);
    assert_eq!(offset_of!(Finding, timeline), 936);
    assert_eq!(offset_of!(Finding, earlier), 1288);
}

#[test]
fn every_number_has_its_name_and_back() {
    for error in StartError::ALL {
        assert_eq!(StartError::from_raw(*error as u32), Some(*error));
    }
    assert_eq!(StartError::from_raw(0), None);
    assert_eq!(StartError::ALL.len(), 32);
    assert_eq!(
        State::from_raw(State::Monitoring as u32),
        Some(State::Monitoring)
    );
    assert_eq!(State::from_raw(5), None);
    assert_eq!(Vendor::from_raw(2), Some(Vendor::Amd));
}

#[test]
fn a_finding_tells_its_kind() {
    let mut finding = <Finding as zerocopy::FromZeros>::new_zeroed();
    assert_eq!(finding.kind(), None);
    for kind in Kind::ALL {
        finding.kind = *kind as u16;
        assert_eq!(finding.kind(), Some(*kind));
    }
}

#[test]
fn requests_are_taken_only_as_they_should_be() {
    let mut good = StartRequest::zeroed();
    good.flags = StartFlags::NO_MTF.bits();
    let check = |r: &StartRequest| request::<StartRequest>(r.as_bytes());
    assert_eq!(check(&good), Ok(good));

    let bytes = good.as_bytes();
    assert_eq!(request::<StartRequest>(&[]), Err(Malformed::Length));
    assert_eq!(
        request::<StartRequest>(&bytes[..23]),
        Err(Malformed::Length)
    );
    assert_eq!(request::<StartRequest>(&[0; 25]), Err(Malformed::Length));
    let broken = |change: fn(&mut StartRequest)| {
        let mut bad = good;
        change(&mut bad);
        request::<StartRequest>(bad.as_bytes())
    };
    assert_eq!(broken(|r| r.header.magic = 0), Err(Malformed::Magic));
    assert_eq!(broken(|r| r.header.version = 1), Err(Malformed::Version));
    assert_eq!(broken(|r| r.header.size = 23), Err(Malformed::Size));
    assert_eq!(broken(|r| r.header.reserved = 1), Err(Malformed::Flags));
    assert_eq!(broken(|r| r.header.reserved2 = 1), Err(Malformed::Flags));
    assert_eq!(broken(|r| r.flags = 1 << 63), Err(Malformed::Flags));
}

#[test]
fn only_known_flags_are_taken() {
    let mut stop = StopRequest::zeroed();
    assert_eq!(request::<StopRequest>(stop.as_bytes()), Ok(stop));
    stop.flags = 1;
    let refused = request::<StopRequest>(stop.as_bytes());
    assert_eq!(refused, Err(Malformed::Flags));
    let mut wait = WaitRequest::zeroed();
    wait.flags = 7;
    assert_eq!(request::<WaitRequest>(wait.as_bytes()), Ok(wait));
    wait.flags = 8;
    let refused = request::<WaitRequest>(wait.as_bytes());
    assert_eq!(refused, Err(Malformed::Flags));
    let evidence = EvidenceRequest::zeroed();
    let taken = request::<EvidenceRequest>(evidence.as_bytes());
    assert_eq!(taken, Ok(evidence));
}

#[test]
fn a_reply_that_promises_more_than_it_holds_is_refused() {
    let mut wait = WaitReply::zeroed();
    wait.count = 2;
    let two = [0; size_of::<Finding>() * 2];
    assert_eq!(findings(&wait, &two).unwrap().count(), 2);
    assert!(findings(&wait, &two[1..]).is_err());
    wait.count = u32::MAX;
    assert!(findings(&wait, &two).is_err());
    let (read, rest) = reply::<WaitReply>(wait.as_bytes()).unwrap();
    assert_eq!((read.count, rest.len()), (u32::MAX, 0));
    assert_eq!(reply::<WaitReply>(&[0; 120]).err(), Some(Malformed::Magic));
}

#[test]
fn hostile_lengths_in_a_finding_stay_inside_it() {
    let finding = Finding::read_from_bytes(&[0xff; size_of::<Finding>()]).unwrap();
    assert_eq!(finding.kind(), None);
    assert_eq!(finding.old().unwrap().len(), WRITE_ROOM);
    assert_eq!(finding.new_bytes().unwrap().len(), WRITE_ROOM);
    assert_eq!(finding.code().len(), 16);
    assert_eq!(finding.actor.module().unwrap().len(), NAME_ROOM);
    assert_eq!(finding.victim.section().unwrap().len(), 8);
    assert_eq!(finding.returns.export().unwrap().len(), NAME_ROOM);
    assert_eq!(finding.timeline().map(ImageChange::name).count(), 4);
    assert_eq!(finding.earlier(), None);
}

#[test]
fn accounts_balance_or_not() {
    let mut accounts = Accounts {
        produced: 28,
        findings: 6,
        delivered: 4,
        queued: 2,
        merged: 3,
        ring_full: 5,
        queue_full: 1,
        rate_limited: 6,
        stale: 7,
        no_evidence: 9,
    };
    assert!(accounts.balance());
    assert_eq!(accounts.dropped(), 12);
    accounts.merged = 4;
    assert!(!accounts.balance());
    accounts.merged = u64::MAX;
    assert!(!accounts.balance());
}

#[test]
fn amd_exit_codes_have_slots_of_their_own() {
    assert_eq!(exit_slot(0x72), Some(0x12));
    assert_eq!(exit_slot(0x400), Some(72));
    assert_eq!(exit_slot(0xa7), Some(71));
    assert_eq!(exit_slot(0x406), Some(78));
    assert_eq!(exit_slot(0x407), None);
    assert_eq!((exit_slot(0x40), exit_slot(0x5f)), (Some(79), Some(79)));
    assert_eq!(exit_slot(0x3f), None);
    assert_eq!(exit_slot(u64::MAX), None);
    assert_eq!(exit_slot(0), None);
}
