//! The witness against tables made by hand: a good machine, and one fault each.

use super::*;

const MEMORY: u64 = 64 << 20;
const ROOT: u64 = 0x10_0000;
const LEVEL3: u64 = 0x10_1000;
const LEVEL2: u64 = 0x10_2000;
const LEVEL1: u64 = 0x10_3000;
const DUMMY: u64 = 0x20_0000;
const HOST_ROOT: u64 = 0x11_0000;
const HOST3: u64 = 0x11_1000;
const HOST2: u64 = 0x11_2000;
const HOST1: u64 = 0x11_3000;
const HOST_CODE: u64 = 0x11_4000;
const HOST_DATA: u64 = 0x11_5000;
const VMCS: u64 = 0x11_6000;
const VMXON: u64 = 0x11_7000;
const BITMAP: u64 = 0x11_8000;
const FIRST_HIDDEN: u64 = ROOT;
const LAST_HIDDEN: u64 = BITMAP;

const WB: u64 = 6 << 3;

/// Mutable picture of a machine.
struct Machine {
    root: Vec<u64>,
    level3: Vec<u64>,
    level2: Vec<u64>,
    level1: Vec<u64>,
    host1: Vec<u64>,
    mtf: bool,
    mbec: bool,
}

impl Machine {
    /// Large read-write pages, one executable 4 KB page at 0x5000, everything of
    /// the hypervisor behind the dummy frame, MTRRs: all write-back.
    fn good() -> Self {
        let table = || vec![0u64; 512];
        let (mut root, mut level3, mut level2) = (table(), table(), table());
        let mut level1 = table();
        root[0] = LEVEL3 | 0x407;
        level3[0] = LEVEL2 | 0x407;
        for (index, entry) in level2.iter_mut().enumerate() {
            *entry = ((index as u64) << 21) | 0x80 | WB | 0x403;
        }
        level2[0] = LEVEL1 | 0x407;
        for (index, entry) in level1.iter_mut().enumerate() {
            let address = (index as u64) << 12;
            *entry = if (FIRST_HIDDEN..=LAST_HIDDEN).contains(&address) {
                DUMMY | WB | 0x3
            } else {
                address | WB | 0x403
            };
        }
        level1[5] = 0x5000 | WB | 0x405;
        let mut host1 = table();
        host1[0] = HOST_CODE | 1;
        host1[1] = HOST_DATA | 3 | (1 << 63);
        Self {
            root,
            level3,
            level2,
            level1,
            host1,
            mtf: false,
            mbec: true,
        }
    }

    fn examine(&self) -> Testimony {
        let table = |next: u64| {
            let mut table = vec![0u64; 512];
            table[0] = next | 3;
            table
        };
        let cpu = serde_json::json!([{
            "cpu": 0, "vendor": "vmx", "mode": "guest", "rflags": 2,
            "vmxon_region": VMXON, "vmcs": VMCS, "eptp": ROOT | 0x1E,
            "mbec": self.mbec, "mtf": self.mtf, "msr_bitmap": BITMAP,
            "host_cr3": HOST_ROOT, "host_rsp": 0x1800, "host_gdtr": 0x1000,
            "host_idtr": 0x1100, "host_tr": 0x1200,
            "mtrr_def_type": 0x806, "mtrr_variable": [0, 0], "mtrr_fixed": [],
        }]);
        let bytes = Checkpoint::synthetic(
            MEMORY,
            &cpu.to_string(),
            &[
                (ROOT, self.root.clone()),
                (LEVEL3, self.level3.clone()),
                (LEVEL2, self.level2.clone()),
                (LEVEL1, self.level1.clone()),
                (HOST_ROOT, table(HOST3)),
                (HOST3, table(HOST2)),
                (HOST2, table(HOST1)),
                (HOST1, self.host1.clone()),
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
    // Four nested and four host tables, code, stack with descriptors, VMCS, VMXON, bitmap.
    assert_eq!(testimony.hypervisor_frames, 13);
}

#[test]
fn writable_and_executable_is_seen() {
    let mut machine = Machine::good();
    machine.level1[5] |= 2;
    machine.complains_of("writable and executable");
    // A core that steps one instruction on its own tables may do that.
    machine.mtf = true;
    let testimony = machine.examine();
    assert!(testimony.violations.is_empty(), "{testimony:?}");
    assert_eq!(testimony.stepping, 1);
    // But only for one instruction's pages.
    for page in 6..9 {
        machine.level1[page] |= 7;
    }
    machine.complains_of("writable and executable");
}

#[test]
fn rights_are_those_of_the_whole_path() {
    let mut machine = Machine::good();
    machine.level1[5] |= 2;
    machine.level2[0] &= !2;
    assert!(machine.examine().violations.is_empty());
}

#[test]
fn user_execution_is_no_kernel_execution() {
    // Bit 10 with W is what user code has under mode-based control: in good()
    // every data page has it.
    let mut machine = Machine::good();
    machine.mbec = false;
    assert!(machine.examine().violations.is_empty());
}

#[test]
fn a_large_executable_page_is_seen() {
    let mut machine = Machine::good();
    machine.level2[9] = (9 << 21) | 0x80 | WB | 0x5;
    machine.complains_of("large page executable");
}

#[test]
fn every_page_of_the_hypervisor_must_be_hidden() {
    let hidden = (FIRST_HIDDEN..=LAST_HIDDEN).step_by(4096);
    for address in hidden.filter(|address| (0x10_4000..0x11_0000).contains(address).eq(&false)) {
        let mut machine = Machine::good();
        let index = usize::try_from(address >> 12).expect("small");
        machine.level1[index] = address | WB | 1;
        machine.complains_of("hypervisor page mapped");
    }
}

#[test]
fn an_alias_of_a_hidden_page_is_seen() {
    let mut machine = Machine::good();
    machine.level1[7] = VMCS | WB | 1;
    machine.complains_of("hypervisor page mapped");
    machine.complains_of("not identity");
}

#[test]
fn a_wrong_memory_type_is_seen() {
    let mut machine = Machine::good();
    machine.level1[9] = 0x9000 | 3;
    machine.complains_of("memory type");
}

#[test]
fn malformed_entries_are_seen() {
    let mut machine = Machine::good();
    machine.level1[9] = 0x9000 | WB | 2;
    machine.complains_of("malformed entry");
    let mut machine = Machine::good();
    machine.level3[3] = (3 << 30) | 0x1000 | 0x80 | WB | 3;
    machine.complains_of("malformed entry");
    let mut machine = Machine::good();
    machine.root[5] = 0x80 | WB | 3;
    machine.complains_of("malformed entry");
}

#[test]
fn host_pages_are_not_writable_and_executable() {
    let mut machine = Machine::good();
    machine.host1[0] |= 2;
    machine.complains_of("host page writable and executable");
    let mut machine = Machine::good();
    machine.host1[1] = 0;
    machine.complains_of("host tables");
}

#[test]
fn a_machine_without_hypervisor_is_no_subject() {
    let bytes = Checkpoint::synthetic(MEMORY, r#"[{"cpu":0,"vendor":"none"}]"#, &[]);
    let testimony = examine(&Checkpoint::parse(bytes).expect("a good file"));
    assert_eq!(testimony.virtualized, 0);
    assert!(testimony.violations.is_empty());
}

#[test]
fn damaged_files_are_refused() {
    let good = Checkpoint::synthetic(MEMORY, "[]", &[(0x1000, vec![1; 512])]);
    assert!(Checkpoint::parse(good.clone()).is_ok());
    for cut in 0..good.len() {
        assert!(
            Checkpoint::parse(good[..cut].to_vec()).is_err(),
            "cut to {cut}"
        );
    }
    let mut other = good;
    other[0] = b'X';
    assert!(Checkpoint::parse(other).is_err());
}
