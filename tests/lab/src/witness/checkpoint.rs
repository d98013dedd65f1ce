//! The checkpoint file that the emulator's instrumentation writes: the state of
//! every processor as JSON, then every page that is not all zero.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::HashMap;

const MAGIC: &[u8; 8] = b"HVLABCP1";
const PAGE: usize = 4096;

/// Registers of one processor, as far as the witness needs them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cpu {
    /// Number.
    #[serde(rename = "cpu")]
    pub(crate) number: u32,
    /// `none`, `vmx` or `svm`.
    pub(crate) vendor: String,
    /// `off`, `root` or `guest`.
    pub(crate) mode: String,
    /// Flags of the mode it is in.
    pub(crate) rflags: u64,
    /// Instructions so far.
    pub(crate) icount: u64,
    /// Physical address of the VMXON region.
    pub(crate) vmxon_region: u64,
    /// Physical address of the current VMCS.
    pub(crate) vmcs: u64,
    /// EPT pointer of the last VM entry.
    pub(crate) eptp: u64,
    /// Mode-based execute control is on.
    pub(crate) mbec: bool,
    /// The monitor trap flag is set.
    pub(crate) mtf: bool,
    /// Physical address of the MSR bitmap.
    pub(crate) msr_bitmap: u64,
    /// Physical address of the VMCB of the last VMRUN.
    pub(crate) vmcb: u64,
    /// Nested CR3 of that VMCB.
    pub(crate) ncr3: u64,
    /// Physical address of the I/O permissions map, 0 if there is none.
    pub(crate) iopm: u64,
    /// Physical address of the MSR permissions map.
    pub(crate) msrpm: u64,
    /// `VM_HSAVE_PA`.
    pub(crate) vm_hsave_pa: u64,
    /// Host state, of the VMCS or as VMRUN saved it.
    pub(crate) host_cr3: u64,
    /// As above.
    pub(crate) host_rsp: u64,
    /// As above.
    pub(crate) host_gdtr: u64,
    /// As above.
    pub(crate) host_idtr: u64,
    /// As above; VMRUN does not save it.
    pub(crate) host_tr: u64,
    /// Limit of the host's GDT, with SVM only.
    pub(crate) host_gdtr_limit: u64,
    /// Memory-type range registers.
    #[serde(flatten)]
    pub(crate) mtrr: Mtrr,
}

/// Raw memory-type range registers of one processor.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mtrr {
    /// `IA32_MTRR_DEF_TYPE`.
    #[serde(rename = "mtrr_def_type")]
    pub(crate) default_type: u64,
    /// `IA32_MTRR_PHYSBASEn` and `PHYSMASKn`, alternating.
    #[serde(rename = "mtrr_variable")]
    pub(crate) variable: Vec<u64>,
    /// `FIX64K_00000`, `FIX16K_80000`, `FIX16K_A0000`, `FIX4K_C0000` to `F8000`.
    #[serde(rename = "mtrr_fixed")]
    pub(crate) fixed: Vec<u64>,
}

impl Cpu {
    /// Whether it executes its guest one instruction at a time just now.
    pub(crate) fn stepping(&self) -> bool {
        const TRAP_FLAG: u64 = 1 << 8;
        self.mtf || (self.mode == "guest" && self.rflags & TRAP_FLAG != 0)
    }
}

/// The whole machine at one moment.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Bytes of RAM, beginning at address 0.
    pub(crate) memory: u64,
    /// Width of physical addresses in bits.
    pub(crate) physical_bits: u32,
    /// Processors in the order of their numbers.
    pub(crate) cpus: Vec<Cpu>,
    bytes: Vec<u8>,
    pages: HashMap<u64, usize>,
}

#[derive(Deserialize)]
struct Head {
    memory: u64,
    cpus: Vec<Cpu>,
}

impl Checkpoint {
    /// Reads the file's bytes.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(bytes.starts_with(MAGIC), "not a checkpoint");
        let length = bytes
            .get(8..12)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes)
            .context("cut short")? as usize;
        let json = bytes.get(12..12 + length).context("cut short")?;
        let head: Head = serde_json::from_slice(json).context("processor state")?;
        let mut pages = HashMap::new();
        let mut at = 12 + length;
        loop {
            let address = bytes
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes)
                .context("cut short")?;
            at += 8;
            if address == u64::MAX {
                break;
            }
            if at + PAGE > bytes.len() || !address.is_multiple_of(PAGE as u64) {
                bail!("a damaged page record");
            }
            pages.insert(address, at);
            at += PAGE;
        }
        Ok(Self {
            memory: head.memory,
            physical_bits: 40,
            cpus: head.cpus,
            bytes,
            pages,
        })
    }

    /// One aligned table entry; `None` outside of RAM.
    pub(crate) fn entry(&self, address: u64) -> Option<u64> {
        if address + 8 > self.memory || !address.is_multiple_of(8) {
            return None;
        }
        let page = address & !(PAGE as u64 - 1);
        let Some(&at) = self.pages.get(&page) else {
            return Some(0);
        };
        let at = at + usize::try_from(address - page).ok()?;
        Some(u64::from_le_bytes(
            self.bytes.get(at..at + 8)?.try_into().ok()?,
        ))
    }

    /// A machine of a test: registers, and pages by address.
    #[cfg(test)]
    pub(crate) fn synthetic(memory: u64, cpus: &str, pages: &[(u64, Vec<u64>)]) -> Vec<u8> {
        let json = format!("{{\"memory\":{memory},\"cpus\":{cpus}}}");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(json.len()).expect("short").to_le_bytes());
        bytes.extend(json.as_bytes());
        for (address, entries) in pages {
            bytes.extend(address.to_le_bytes());
            assert_eq!(entries.len(), PAGE / 8);
            bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        }
        bytes.extend(u64::MAX.to_le_bytes());
        bytes
    }
}
