//! GDT, TSS and IDT of root mode.
//!
//! The code selector and the task selector have the same values as the guest's:
//! while a core is being given back there is a moment in which the host's IDT is
//! still loaded but the GDT is already the guest's (`vmx::entry`), and its gates
//! must mean the same code segment in both.
//!
//! Intel SDM vol. 3, "Task-State Segment in 64-bit Mode" and "64-Bit IDT Gates".

/// Task-state segment in 64-bit mode.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy)]
pub struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    /// Interrupt-stack table, entries 1 to 7.
    pub ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

const _: () = assert!(size_of::<Tss>() == 104);

impl Tss {
    /// A TSS with three interrupt stacks: NMI, double fault, machine check.
    #[must_use]
    pub const fn new(nmi: u64, double_fault: u64, machine_check: u64) -> Self {
        Self {
            reserved0: 0,
            rsp: [0; 3],
            reserved1: 0,
            ist: [nmi, double_fault, machine_check, 0, 0, 0, 0],
            reserved2: 0,
            reserved3: 0,
            io_map: 104,
        }
    }
}

/// Slots of the host's GDT: enough for any task selector that Windows uses.
pub const GDT_SLOTS: usize = 64;

/// A 64-bit code segment, present, DPL 0, accessed.
const CODE: u64 = 0x0020_9B00_0000_0000;
/// A data segment, present, DPL 0, writable, accessed.
const DATA: u64 = 0x0000_9300_0000_0000;

/// The two slots of an available 64-bit TSS descriptor.
#[must_use]
pub const fn tss_descriptor(base: u64, limit: u32) -> [u64; 2] {
    let limit = limit as u64;
    [
        limit & 0xFFFF
            | (base & 0x00FF_FFFF) << 16
            | 0x89 << 40
            | (limit >> 16 & 0xF) << 48
            | (base >> 24 & 0xFF) << 56,
        base >> 32,
    ]
}

/// Puts the host's segments into a zeroed GDT. `false` when CS or TR is null, or any
/// selector in an LDT or past the table's end.
#[must_use]
pub fn fill_gdt(gdt: &mut [u64; GDT_SLOTS], cs: u16, ss: u16, tr: u16, tss: [u64; 2]) -> bool {
    let slot = |selector: u16| {
        let index = usize::from(selector >> 3);
        (index != 0 && selector & 4 == 0 && index + 1 < GDT_SLOTS).then_some(index)
    };
    let (Some(code), Some(task)) = (slot(cs), slot(tr)) else {
        return false;
    };
    gdt[code] = CODE;
    // Kernel code runs with a null SS after an interrupt from user mode; then it
    // returns with one, too.
    if ss & !7 != 0 {
        let Some(data) = slot(ss) else {
            return false;
        };
        gdt[data] = DATA;
    }
    gdt[task] = tss[0];
    gdt[task + 1] = tss[1];
    true
}

/// A present interrupt gate, DPL 0, as its two halves.
#[must_use]
pub const fn gate(handler: u64, cs: u16, ist: u8) -> [u64; 2] {
    [
        handler & 0xFFFF
            | (cs as u64) << 16
            | (ist as u64 & 7) << 32
            | 0x8E << 40
            | (handler >> 16 & 0xFFFF) << 48,
        handler >> 32,
    ]
}

/// Interrupt stack of NMIs.
pub const IST_NMI: u8 = 1;
/// Interrupt stack of double faults.
pub const IST_DOUBLE_FAULT: u8 = 2;
/// Interrupt stack of machine checks.
pub const IST_MACHINE_CHECK: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tss_descriptor_holds_its_base_and_limit() {
        let [low, high] = tss_descriptor(0xFFFF_F805_89AB_CDEF, 0x67);
        let base = low >> 16 & 0xFF_FFFF | (low >> 56) << 24 | high << 32;
        assert_eq!(base, 0xFFFF_F805_89AB_CDEF);
        assert_eq!(low & 0xFFFF, 0x67);
        assert_eq!(low >> 40 & 0xFF, 0x89, "available, present");
    }

    #[test]
    fn a_gate_holds_its_handler() {
        let [low, high] = gate(0xFFFF_F805_1234_5678, 0x10, 2);
        let handler = low & 0xFFFF | (low >> 48) << 16 | high << 32;
        assert_eq!(handler, 0xFFFF_F805_1234_5678);
        assert_eq!(low >> 16 & 0xFFFF, 0x10);
        assert_eq!(low >> 32 & 7, 2);
    }

    #[test]
    fn selectors_that_cannot_be_are_refused() {
        let mut gdt = [0; GDT_SLOTS];
        assert!(fill_gdt(&mut gdt, 0x10, 0x18, 0x40, [1, 2]));
        assert_eq!(gdt[8], 1);
        let mut gdt = [0; GDT_SLOTS];
        assert!(fill_gdt(&mut gdt, 0x10, 0, 0x40, [1, 2]), "SS may be null");
        assert_eq!([gdt[0], gdt[2], gdt[8], gdt[9]], [0, CODE, 1, 2]);
        assert!(!fill_gdt(&mut gdt, 0, 0x18, 0x40, [1, 2]), "null");
        assert!(!fill_gdt(&mut gdt, 0x10, 0x18, 0x44, [1, 2]), "in an LDT");
        assert!(!fill_gdt(&mut gdt, 0x10, 0x18, 0xFFF8, [1, 2]), "too far");
    }
}
