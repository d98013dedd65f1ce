//! The independent witness: from a checkpoint of the whole machine it says
//! whether the hypervisor's promises hold at that very point.
//!
//! It shares no code with `ept` or `hv-core` and asks neither: nested tables,
//! host tables and MTRRs are read from guest-physical memory and registers, by
//! what the Intel SDM says of them (volume 3, "EPT Mechanism", "Memory Type
//! Range Registers", "4-Level Paging") and the AMD64 APM (volume 2, "Nested
//! Paging"). Pure: bytes in, verdict out.
//!
//! The promises:
//! 1. No page is writable and executable by the kernel at once. One core that is
//!    just stepping one instruction on its own tables may have one such page, or
//!    two if the instruction crosses a page boundary.
//! 2. No page of the hypervisor is mapped for the guest at any address: the VMX
//!    regions or the VMCB and the host save area, the nested tables themselves, the
//!    host's page tables, code, stack, IDT, GDT and TSS, the maps of MSRs and ports.
//! 3. Memory types are the MTRRs' (with NPT: no leaf asks for one).
//! 4. No large page is executable by the kernel.
//! 5. What is not identity-mapped is mapped to one dummy frame.
//! 6. No entry has a reserved bit set; in NPT, each is a user page.

mod checkpoint;
mod ept;
mod mtrr;
mod nested;
mod npt;
mod paging;

pub(crate) use checkpoint::Checkpoint;

use checkpoint::Cpu;
use nested::{Leaf, PAGE, Root, Space};
use std::collections::{BTreeMap, BTreeSet};

/// What the witness saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Testimony {
    /// Processors in VMX operation, or with SVM on, with nested tables in use.
    pub(crate) virtualized: usize,
    /// Pages that the kernel may execute.
    pub(crate) executable: u64,
    /// Pages that a stepping core may write and execute.
    pub(crate) stepping: u64,
    /// Frames known to belong to the hypervisor.
    pub(crate) hypervisor_frames: usize,
    /// A processor was in root mode: it may be about to take back what it gave for
    /// one instruction. Only a step by the monitor trap flag shows from outside.
    pub(crate) in_root: bool,
    /// Nested-table pages.
    pub(crate) tables: usize,
    /// Broken promises, one sentence each, at most 20 of a kind.
    pub(crate) violations: Vec<String>,
}

const MOST_OF_A_KIND: usize = 20;

struct Complaints {
    list: Vec<String>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Complaints {
    fn add(&mut self, kind: &'static str, text: impl FnOnce() -> String) {
        let count = self.kinds.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_OF_A_KIND {
            self.list.push(format!("{kind}: {}", text()));
        }
    }
}

/// Examines a checkpoint.
pub(crate) fn examine(checkpoint: &Checkpoint) -> Testimony {
    let mut complaints = Complaints {
        list: Vec::new(),
        kinds: BTreeMap::new(),
    };
    let mut testimony = Testimony::default();
    let virtualized: Vec<&Cpu> = checkpoint
        .cpus
        .iter()
        .filter(|cpu| Root::of(cpu).is_some())
        .collect();
    testimony.virtualized = virtualized.len();
    testimony.in_root = virtualized.iter().any(|cpu| cpu.mode == "root");

    let mut hypervisor: BTreeMap<u64, &'static str> = BTreeMap::new();
    let mut roots: BTreeMap<Root, Vec<&Cpu>> = BTreeMap::new();
    for cpu in &virtualized {
        if let Some(root) = Root::of(cpu) {
            roots.entry(root).or_default().push(cpu);
        }
        host_frames(checkpoint, cpu, &mut hypervisor, &mut complaints);
    }
    let mut spaces = Vec::new();
    let mut tables = BTreeSet::new();
    for (&root, users) in &roots {
        match Space::walk(checkpoint, root) {
            Ok(space) => {
                tables.extend(space.tables.iter().copied());
                for malformed in &space.malformed {
                    complaints.add("malformed entry", || malformed.clone());
                }
                spaces.push((space, users.as_slice()));
            }
            Err(error) => complaints.add("nested root", || format!("{}: {error}", root.describe())),
        }
    }
    for &table in &tables {
        hypervisor.entry(table).or_insert("nested table");
    }
    testimony.tables = tables.len();
    testimony.hypervisor_frames = hypervisor.len();

    for (space, users) in &spaces {
        rights(space, users, &mut testimony, &mut complaints);
        mapping(checkpoint, space, users, &hypervisor, &mut complaints);
    }
    testimony.violations = complaints.list;
    testimony
}

/// Promises 1 and 4.
fn rights(space: &Space, users: &[&Cpu], testimony: &mut Testimony, complaints: &mut Complaints) {
    let stepping = users.len() == 1 && users[0].stepping();
    let mut both = Vec::new();
    for leaf in &space.leaves {
        // Without mode-based control, bit 2 is the right of kernel and user both.
        if leaf.execute {
            testimony.executable += leaf.size / PAGE;
            if leaf.size > PAGE {
                complaints.add("large page executable", || leaf.describe());
            }
            if leaf.write {
                both.push(leaf);
            }
        }
    }
    let allowed = if stepping { 2 } else { 0 };
    if both.len() <= allowed {
        testimony.stepping += both.len() as u64;
    } else {
        for leaf in both {
            complaints.add("writable and executable", || {
                format!("{} ({})", leaf.describe(), space.root.describe())
            });
        }
    }
}

/// Promises 2, 3 and 5.
fn mapping(
    checkpoint: &Checkpoint,
    space: &Space,
    users: &[&Cpu],
    hypervisor: &BTreeMap<u64, &'static str>,
    complaints: &mut Complaints,
) {
    let types = mtrr::Map::new(&users[0].mtrr, checkpoint.physical_bits);
    let mut dummy = None;
    for leaf in &space.leaves {
        for (frame, what) in hypervisor.range(leaf.target..leaf.target + leaf.size) {
            complaints.add("hypervisor page mapped", || {
                format!(
                    "{what} at {frame:#x}, reachable as {:#x}",
                    leaf.guest + (frame - leaf.target)
                )
            });
        }
        if leaf.target != leaf.guest {
            check_dummy(leaf, &mut dummy, complaints);
            continue;
        }
        let Some(memory_type) = leaf.memory_type else {
            continue;
        };
        match types.uniform(leaf.guest, leaf.size) {
            Some(expected) if expected == memory_type => {}
            Some(expected) => complaints.add("memory type", || {
                format!(
                    "{} has type {memory_type}, the MTRRs say {expected}",
                    leaf.describe()
                )
            }),
            None => complaints.add("memory type", || {
                format!("{} spans several MTRR types", leaf.describe())
            }),
        }
    }
}

fn check_dummy(leaf: &Leaf, dummy: &mut Option<u64>, complaints: &mut Complaints) {
    let known = *dummy.get_or_insert(leaf.target);
    if leaf.size != PAGE || known != leaf.target {
        complaints.add("not identity", || leaf.describe());
    }
    if leaf.execute {
        complaints.add("dummy frame executable", || leaf.describe());
    }
}

/// The frames that only root mode may have, as far as one processor's VMCS or VMCB
/// leads to them.
fn host_frames(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    frames: &mut BTreeMap<u64, &'static str>,
    complaints: &mut Complaints,
) {
    let mut add = |address: u64, what: &'static str| {
        if address != 0 && address < checkpoint.memory {
            frames.insert(address & !(PAGE - 1), what);
        }
    };
    add(cpu.vmxon_region, "VMXON region");
    add(cpu.vmcs, "VMCS");
    if cpu.msr_bitmap != u64::MAX {
        add(cpu.msr_bitmap, "MSR bitmap");
    }
    add(cpu.vmcb, "VMCB");
    add(cpu.vm_hsave_pa, "host save area");
    // Two pages, and three (AMD64 APM volume 2, "MSR Intercepts", "IOIO Intercepts").
    for (map, pages, what) in [
        (cpu.msrpm, 2, "MSR permissions map"),
        (cpu.iopm, 3, "I/O permissions map"),
    ] {
        for page in (0..pages).filter(|_| map != 0) {
            add(map + page * PAGE, what);
        }
    }
    let host = match paging::HostSpace::walk(checkpoint, cpu.host_cr3) {
        Ok(host) => host,
        Err(error) => {
            complaints.add("host tables", || format!("CPU {}: {error}", cpu.number));
            return;
        }
    };
    for &table in &host.tables {
        add(table, "host page table");
    }
    for page in host.pages.iter().filter(|page| page.execute) {
        add(page.target, "host code");
        if page.write {
            complaints.add("host page writable and executable", || {
                format!("CPU {}: {:#x}", cpu.number, page.linear)
            });
        }
    }
    let mut places = vec![
        // The exit stub's stack pointer is the top of its stack.
        (cpu.host_rsp.wrapping_sub(8), "host stack"),
        (cpu.host_gdtr, "host GDT"),
        (cpu.host_idtr, "host IDT"),
    ];
    if cpu.vendor == "svm" {
        // VMRUN saves no TR: the TSS is whatever the host's GDT has.
        let segments = task_segments(checkpoint, &host, cpu.host_gdtr, cpu.host_gdtr_limit);
        if segments.is_empty() {
            complaints.add("host tables", || {
                format!("CPU {}: the host's GDT has no TSS", cpu.number)
            });
        }
        places.extend(segments.into_iter().map(|base| (base, "host TSS")));
    } else {
        places.push((cpu.host_tr, "host TSS"));
    }
    for (linear, what) in places {
        match host.translate(linear) {
            Some(physical) => add(physical, what),
            None => complaints.add("host tables", || {
                format!("CPU {}: {what} at {linear:#x} is not mapped", cpu.number)
            }),
        }
    }
}

/// Bases of the 64-bit TSS descriptors in a GDT (AMD64 APM volume 2, "System
/// Descriptors": type 9 is an available one, 0xB a busy one).
fn task_segments(
    checkpoint: &Checkpoint,
    host: &paging::HostSpace,
    gdt: u64,
    limit: u64,
) -> Vec<u64> {
    let entry = |offset: u64| checkpoint.entry(host.translate(gdt.wrapping_add(offset))?);
    let mut found = Vec::new();
    let mut offset = 8;
    while offset + 7 <= limit.min(0xFFFF) {
        let Some(low) = entry(offset) else {
            break;
        };
        let system = low >> 44 & 1 == 0 && low >> 47 & 1 == 1;
        if system && matches!(low >> 40 & 0xF, 9 | 0xB) {
            let high = entry(offset + 8).unwrap_or(0);
            found.push((low >> 16 & 0xFF_FFFF) | (low >> 56 << 24) | (high << 32));
        }
        offset += if system { 16 } else { 8 };
    }
    found
}

#[cfg(test)]
mod npt_tests;
#[cfg(test)]
mod tests;
