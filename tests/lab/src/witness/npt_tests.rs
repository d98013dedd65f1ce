//! The witness against AMD's tables made by hand: a good machine, and one fault
//! each. What is the same for both vendors stands in `tests.rs`.

use super::*;

const MEMORY: u64 = 64 << 20;
const ROOT: u64 = 0x10_0000;
const LEVEL3: u64 = 0x10_1000;
const LEVEL2: u64 = 0x10_2000;
const LEVEL1: u64 = 0x10_3000;
const DUMMY: u64 = 0x20_0000;
const HOST_ROOT: u64 = 0x10_4000;
const HOST3: u64 = 0x10_5000;
const HOST2: u64 = 0x10_6000;
const HOST1: u64 = 0x10_7000;
const HOST_CODE: u64 = 0x10_8000;
const HOST_DATA: u64 = 0x10_9000;
const VMCB: u64 = 0x10_A000;
const SAVE_AREA: u64 = 0x10_B000;
const MSRPM: u64 = 0x10_C000;
const IOPM: u64 = 0x10_E000;
const HOST_TSS: u64 = 0x11_1000;
const FIRST_HIDDEN: u64 = ROOT;
const LAST_HIDDEN: u64 = HOST_TSS;

const NX: u64 = 1 << 63;
/// Present, writable, user.
const TABLE: u64 = 7;
const DATA: u64 = 7 | NX;
const CODE: u64 = 5;
const LARGE: u64 = 0x80;

/// Mutable picture of a machine.
struct Machine {
    root: Vec<u64>,
    level3: Vec<u64>,
    level2: Vec<u64>,
    level1: Vec<u64>,
    host_data: Vec<u64>,
    ncr3: u64,
    rflags: u64,
}

impl Machine {
    /// Large read-write pages, one executable 4 KB page at 0x5000, everything of
    /// the hypervisor behind the dummy frame.
    fn good() -> Self {
        let table = || vec![0u64; 512];
        let (mut root, mut level3, mut level2) = (table(), table(), table());
        let mut level1 = table();
        root[0] = LEVEL3 | TABLE;
        level3[0] = LEVEL2 | TABLE;
        for (index, entry) in level2.iter_mut().enumerate() {
            *entry = ((index as u64) << 21) | LARGE | DATA;
        }
        level2[0] = LEVEL1 | TABLE;
        for (index, entry) in level1.iter_mut().enumerate() {
            let address = (index as u64) << 12;
            *entry = if (FIRST_HIDDEN..=LAST_HIDDEN).contains(&address) {
                DUMMY | DATA
            } else {
                address | DATA
            };
        }
        level1[5] = 0x5000 | CODE;
        // GDT at its beginning: null, code, a busy TSS at linear 0x2000.
        let mut host_data = table();
        host_data[1] = 0x00AF_9B00_0000_FFFF;
        host_data[2] = 0x0000_8B00_2000_0067;
        Self {
            root,
            level3,
            level2,
            level1,
            host_data,
            ncr3: ROOT,
            rflags: 2,
        }
    }

    fn examine(&self) -> Testimony {
        let table = |entries: &[u64]| {
            let mut table = vec![0u64; 512];
            table[..entries.len()].copy_from_slice(entries);
            table
        };
        let cpu = serde_json::json!([{
            "cpu": 0, "vendor": "svm", "mode": "guest", "rflags": self.rflags,
            "vmcb": VMCB, "ncr3": self.ncr3, "vm_hsave_pa": SAVE_AREA,
            "msrpm": MSRPM, "iopm": IOPM,
            "host_cr3": HOST_ROOT, "host_rsp": 0x1800, "host_gdtr": 0x1000,
            "host_gdtr_limit": 0x1F, "host_idtr": 0x1100,
        }]);
        let bytes = Checkpoint::synthetic(
            MEMORY,
            &cpu.to_string(),
            &[
                (ROOT, self.root.clone()),
                (LEVEL3, self.level3.clone()),
                (LEVEL2, self.level2.clone()),
                (LEVEL1, self.level1.clone()),
                (HOST_ROOT, table(&[HOST3 | 3])),
                (HOST3, table(&[HOST2 | 3])),
                (HOST2, table(&[HOST1 | 3])),
                (
                    HOST1,
                    table(&[HOST_CODE | 1, HOST_DATA | 3 | NX, HOST_TSS | 3 | NX]),
                ),
                (HOST_DATA, self.host_data.clone()),
            ],
        );
        examine(&Checkpoint::parse(bytes).expect("a good file"))
    }

    fn complains_of(&self, what: &str) {
        let testimony = self.examine();
        assert!(
            testimony
                .violations
                .iter()
                .any(|sentence| sentence.starts_with(what)),
            "expected a complaint of `{what}` in {:?}",
            testimony.violations
        );
    }
}

#[test]
fn a_good_machine_has_no_complaint() {
    let testimony = Machine::good().examine();
    assert!(testimony.violations.is_empty(), "{testimony:?}");
    assert_eq!(testimony.virtualized, 1);
    assert_eq!(testimony.executable, 1);
    assert_eq!(testimony.tables, 4);
    // Four nested and four host tables, code, stack with descriptors, TSS, VMCB, save
    // area, two and three pages of maps.
    assert_eq!(testimony.hypervisor_frames, 18);
}

#[test]
fn writable_and_executable_is_seen() {
    let mut machine = Machine::good();
    machine.level1[5] |= 2;
    machine.complains_of("writable and executable");
    // A core that steps one instruction by RFLAGS.TF on its own tables may do that.
    machine.rflags |= 0x100;
    let testimony = machine.examine();
    assert!(testimony.violations.is_empty(), "{testimony:?}");
    assert_eq!(testimony.stepping, 1);
    for page in 6..9 {
        machine.level1[page] &= !NX;
    }
    machine.complains_of("writable and executable");
}

#[test]
fn rights_are_those_of_the_whole_path() {
    let mut machine = Machine::good();
    machine.level1[5] |= 2;
    machine.level2[0] &= !2;
    assert!(machine.examine().violations.is_empty());
    let mut machine = Machine::good();
    machine.level1[5] |= 2;
    machine.level3[0] |= NX;
    assert!(machine.examine().violations.is_empty());
}

#[test]
fn a_large_executable_page_is_seen() {
    let mut machine = Machine::good();
    machine.level2[9] = (9 << 21) | LARGE | CODE;
    machine.complains_of("large page executable");
}

#[test]
fn every_entry_is_a_user_page() {
    let mut machine = Machine::good();
    machine.level1[9] &= !4;
    machine.complains_of("malformed entry");
    let mut machine = Machine::good();
    machine.level3[0] &= !4;
    machine.complains_of("malformed entry");
}

#[test]
fn every_page_of_the_hypervisor_must_be_hidden() {
    for address in (FIRST_HIDDEN..=LAST_HIDDEN).step_by(4096) {
        let mut machine = Machine::good();
        let index = usize::try_from(address >> 12).expect("small");
        machine.level1[index] = address | DATA;
        machine.complains_of("hypervisor page mapped");
    }
}

#[test]
fn an_alias_of_a_hidden_page_is_seen() {
    let mut machine = Machine::good();
    machine.level1[7] = VMCB | DATA;
    machine.complains_of("hypervisor page mapped");
    machine.complains_of("not identity");
}

#[test]
fn reserved_bits_and_memory_types_are_seen() {
    // No large page at the top; none beside its alignment; no address beyond the
    // width; no entry of the PAT but the first.
    let spoil: [fn(&mut Machine); 6] = [
        |machine| machine.root[5] = LARGE | DATA,
        |machine| machine.level3[3] = (3 << 30) | 0x20_0000 | LARGE | DATA,
        |machine| machine.level1[9] |= 1 << 45,
        |machine| machine.level1[9] |= 1 << 4,
        |machine| machine.level1[9] |= 1 << 7,
        |machine| machine.level2[9] |= 1 << 12,
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let mut machine = Machine::good();
        spoil(&mut machine);
        assert!(
            !machine.examine().violations.is_empty(),
            "fault {number} is not seen"
        );
        machine.complains_of("malformed entry");
    }
    let mut machine = Machine::good();
    machine.ncr3 |= 1;
    machine.complains_of("nested root");
}

#[test]
fn a_host_without_task_state_is_seen() {
    let mut machine = Machine::good();
    machine.host_data[2] = 0;
    machine.complains_of("host tables");
}

#[test]
fn svm_without_nested_paging_is_no_subject() {
    let mut machine = Machine::good();
    machine.ncr3 = 0;
    assert_eq!(machine.examine().virtualized, 0);
}
