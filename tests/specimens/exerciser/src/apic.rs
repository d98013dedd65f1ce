//! The local APIC of the processor at hand: interrupts and NMIs to oneself and to
//! others. Interrupts are off around each use, because the kernel writes the same
//! two halves of the command register. MiniNT, like Windows, may run in xAPIC or
//! x2APIC mode.

use wdk_standin::wdk_sys::{
    _MEMORY_CACHING_TYPE, PHYSICAL_ADDRESS, PVOID,
    ntddk::{MmMapIoSpace, MmUnmapIoSpace},
};

use crate::instr;

const APIC_BASE: u32 = 0x1B;
const X2APIC: u64 = 1 << 10;
const X2APIC_FIRST: u32 = 0x800;
const ID: u32 = 0x20;
const END_OF_INTERRUPT: u32 = 0xB0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const ASSERT: u32 = 1 << 14;
const NMI: u32 = 0x400;
const PENDING: u32 = 1 << 12;

/// The registers, mapped.
pub(crate) struct Apic {
    window: PVOID,
    x2apic: bool,
}

// SAFETY: the mapping shows each processor its own APIC.
unsafe impl Sync for Apic {}

impl Apic {
    /// Maps them. PASSIVE_LEVEL.
    pub(crate) fn map() -> Option<Self> {
        // SAFETY: every processor here has the register.
        let base = unsafe { instr::read_msr(APIC_BASE) };
        let mut address = PHYSICAL_ADDRESS::default();
        address.QuadPart = (base & 0x000F_FFFF_FFFF_F000).cast_signed();
        // SAFETY: device registers; failure gives null.
        let window = unsafe { MmMapIoSpace(address, 4096, _MEMORY_CACHING_TYPE::MmNonCached) };
        (!window.is_null()).then_some(Self {
            window,
            x2apic: base & X2APIC != 0,
        })
    }

    fn register(&self, offset: u32) -> *mut u32 {
        self.window.cast::<u32>().wrapping_add(offset as usize / 4)
    }

    fn read(&self, offset: u32) -> u32 {
        if self.x2apic {
            // SAFETY: the register exists in this mode.
            return (unsafe { instr::read_msr(X2APIC_FIRST + offset / 16) } & 0xFFFF_FFFF) as u32;
        }
        // SAFETY: a register of the page that is mapped.
        unsafe { self.register(offset).read_volatile() }
    }

    fn write(&self, offset: u32, value: u32) {
        if self.x2apic {
            // SAFETY: the register exists in this mode.
            unsafe { instr::write_msr(X2APIC_FIRST + offset / 16, value.into()) };
            return;
        }
        // SAFETY: a register of the page that is mapped.
        unsafe { self.register(offset).write_volatile(value) };
    }

    /// This processor's identifier.
    pub(crate) fn id(&self) -> u32 {
        let id = self.read(ID);
        if self.x2apic { id } else { id >> 24 }
    }

    fn command(&self, target: u32, low: u32) {
        if self.x2apic {
            let value = u64::from(target) << 32 | u64::from(low);
            // SAFETY: the register exists in this mode.
            unsafe { instr::write_msr(X2APIC_FIRST + COMMAND_LOW / 16, value) };
            return;
        }
        let before = self.read(COMMAND_HIGH);
        self.write(COMMAND_HIGH, target << 24);
        self.write(COMMAND_LOW, low);
        while self.read(COMMAND_LOW) & PENDING != 0 {
            core::hint::spin_loop();
        }
        self.write(COMMAND_HIGH, before);
    }

    /// An interrupt with this vector. Interrupts are off.
    pub(crate) fn interrupt(&self, target: u32, vector: u32) {
        self.command(target, ASSERT | vector);
    }

    /// An NMI. Interrupts are off.
    pub(crate) fn nmi(&self, target: u32) {
        self.command(target, ASSERT | NMI);
    }

    /// Where to write what for an NMI to this processor, by one instruction. xAPIC
    /// mode only; interrupts are off until it is sent.
    pub(crate) fn nmi_to_self(&self) -> (*mut u32, u32) {
        self.write(COMMAND_HIGH, self.id() << 24);
        (self.register(COMMAND_LOW), ASSERT | NMI)
    }

    /// The interrupt in service is done.
    pub(crate) fn end_of_interrupt(&self) {
        self.write(END_OF_INTERRUPT, 0);
    }
}

impl Drop for Apic {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`.
        unsafe { MmUnmapIoSpace(self.window, 4096) };
    }
}
