//! NT behind the hypervisor's [`Platform`]: memory, addresses, processors.
//!
//! Documented calls only. PASSIVE_LEVEL throughout, never from root mode. It owns
//! nothing: what it hands out belongs to the caller until it is freed.

use core::arch::x86_64::{__cpuid, _rdtsc};

use detector::registry::image;
use ept::addr::Hpa;
use hv_core::platform::{ImageSection, MAX_IMAGE_SECTIONS, Platform, Ram, RamRange, Region};

use crate::status::Status;
use crate::wdk_crates::wdk_sys::{
    ALL_PROCESSOR_GROUPS, GROUP_AFFINITY, LARGE_INTEGER, MM_ANY_NODE_OK, NT_SUCCESS,
    PAGE_READWRITE, PDRIVER_OBJECT, PHYSICAL_ADDRESS, PROCESSOR_NUMBER, PVOID, WDFDRIVER,
    call_unsafe_wdf_function_binding,
    ntddk::{
        ExFreePool, KeGetProcessorNumberFromIndex, KeQueryActiveProcessorCountEx,
        KeQueryInterruptTimePrecise, KeQueryPerformanceCounter, KeRevertToUserGroupAffinityThread,
        KeSetSystemGroupAffinityThread, MmAllocateContiguousNodeMemory, MmFreeContiguousMemory,
        MmGetPhysicalAddress, MmGetPhysicalMemoryRanges,
    },
};

const PAGE: u64 = 4096;

/// The operating system, as the hypervisor needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NtPlatform {
    object: PDRIVER_OBJECT,
    image: u64,
    image_bytes: u32,
}

impl NtPlatform {
    /// Looks up where this driver's image lies.
    pub(crate) fn new(handle: WDFDRIVER) -> Result<Self, Status> {
        // SAFETY: the handle is live.
        let object =
            unsafe { call_unsafe_wdf_function_binding!(WdfDriverWdmGetDriverObject, handle) };
        // SAFETY: null, or our own driver object, which outlives the handle.
        let known = unsafe { object.as_ref() }.ok_or(Status::NOT_READY)?;
        Ok(Self {
            object,
            image: known.DriverStart as u64,
            image_bytes: known.DriverSize,
        })
    }

    /// From now on the system refuses to unload the driver: one without an unload
    /// routine cannot be unloaded (Windows driver documentation, "Writing an
    /// Unload Routine").
    pub(crate) fn forbid_unload(&self) {
        // SAFETY: our own driver object, live as long as the image.
        let unload = unsafe { &raw mut (*self.object).DriverUnload };
        // SAFETY: as above; the system reads the field when it is asked to unload.
        unsafe { unload.write(None) };
    }

    /// The image's headers: they are mapped and read-only as long as the image is.
    fn headers(&self) -> &'static [u8] {
        let length = (self.image_bytes as usize).min(4096);
        // SAFETY: the loader mapped that much at least; nobody writes headers.
        unsafe { core::slice::from_raw_parts(self.image as *const u8, length) }
    }
}

/// Number of running logical processors in all groups.
pub(crate) fn processors() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the constant is 0xFFFF")]
    const ALL: u16 = ALL_PROCESSOR_GROUPS as u16;
    // SAFETY: any IRQL, any group number.
    unsafe { KeQueryActiveProcessorCountEx(ALL) }
}

/// Physical address behind a resident system address; `None` without one.
pub(crate) fn physical_address(va: u64) -> Option<u64> {
    // SAFETY: answers 0 for an address that is not mapped.
    let address = unsafe { MmGetPhysicalAddress(va as PVOID) };
    match quad(address) {
        0 => None,
        address => Some(address),
    }
}

const fn large(value: i64) -> LARGE_INTEGER {
    LARGE_INTEGER { QuadPart: value }
}

fn quad(value: PHYSICAL_ADDRESS) -> u64 {
    // SAFETY: all of the union's views cover the same eight bytes.
    let value = unsafe { value.QuadPart };
    value.cast_unsigned()
}

// SAFETY: the driver object is the system's, good in any thread.
unsafe impl Send for NtPlatform {}
// SAFETY: as above.
unsafe impl Sync for NtPlatform {}

// SAFETY: regions are what the memory manager says they are, and stay so until
// they are freed; everything else is read from the system.
unsafe impl Platform for NtPlatform {
    fn cpu_count(&self) -> u32 {
        processors()
    }

    fn allocate(&self, bytes: usize) -> Option<Region> {
        if bytes == 0 || !bytes.is_multiple_of(4096) {
            return None;
        }
        // SAFETY: no limits on where; not executable; the result is checked.
        let block = unsafe {
            MmAllocateContiguousNodeMemory(
                bytes as u64,
                large(0),
                large(i64::MAX),
                large(0),
                PAGE_READWRITE,
                MM_ANY_NODE_OK,
            )
        };
        if block.is_null() {
            return None;
        }
        // SAFETY: the block is ours, writable and that long.
        unsafe { core::ptr::write_bytes(block.cast::<u8>(), 0, bytes) };
        let va = block as u64;
        if let Some(pa) = physical_address(va)
            && va.is_multiple_of(PAGE)
        {
            return Some(Region {
                va,
                pa: Hpa::new(pa),
                bytes,
            });
        }
        // SAFETY: allocated above, used by nobody.
        unsafe { MmFreeContiguousMemory(block) };
        None
    }

    unsafe fn free(&self, region: Region) {
        // SAFETY: the caller's promise: a live block of `allocate`.
        unsafe { MmFreeContiguousMemory(region.va as PVOID) };
    }

    fn physical_address(&self, va: u64) -> Option<Hpa> {
        physical_address(va).map(Hpa::new)
    }

    fn run_on(&self, cpu: u32, work: &mut dyn FnMut()) -> bool {
        let mut number = PROCESSOR_NUMBER::default();
        // SAFETY: `number` is ours.
        let status = unsafe { KeGetProcessorNumberFromIndex(cpu, &raw mut number) };
        if !NT_SUCCESS(status) {
            return false;
        }
        let mut affinity = GROUP_AFFINITY {
            Mask: 1 << number.Number,
            Group: number.Group,
            ..GROUP_AFFINITY::default()
        };
        let mut previous = GROUP_AFFINITY::default();
        // SAFETY: PASSIVE_LEVEL; an active processor; both structures are ours.
        unsafe { KeSetSystemGroupAffinityThread(&raw mut affinity, &raw mut previous) };
        work();
        // SAFETY: as the call above left it.
        unsafe { KeRevertToUserGroupAffinityThread(&raw mut previous) };
        true
    }

    fn ram(&self) -> Option<Ram> {
        // SAFETY: PASSIVE_LEVEL.
        let ranges = unsafe { MmGetPhysicalMemoryRanges() };
        if ranges.is_null() {
            return None;
        }
        let mut ram = Ram::empty();
        let mut fits = true;
        for index in 0.. {
            // SAFETY: the block ends with a range of zero bytes, where we stop.
            let entry = unsafe { ranges.add(index) };
            // SAFETY: not behind that end.
            let range = unsafe { entry.read() };
            let (base, bytes) = (quad(range.BaseAddress), quad(range.NumberOfBytes));
            if base == 0 && bytes == 0 {
                break;
            }
            fits = fits && ram.push(RamRange { base, bytes });
        }
        // SAFETY: the block is ours to free.
        unsafe { ExFreePool(ranges.cast()) };
        (fits && ram.count > 0).then_some(ram)
    }

    fn image_sections(&self, sections: &mut [ImageSection; MAX_IMAGE_SECTIONS]) -> usize {
        let headers = ImageSection {
            va: self.image,
            bytes: 4096,
            writable: false,
            executable: false,
        };
        let own = image::sections(self.headers()).into_iter().flatten();
        let resident = own.filter(|section| !section.discardable());
        let resident = resident.map(|section| ImageSection {
            va: self.image + u64::from(section.rva),
            bytes: section.size as usize,
            writable: section.writable(),
            executable: section.executable(),
        });
        let mut count = 0;
        for (slot, section) in sections
            .iter_mut()
            .zip([headers].into_iter().chain(resident))
        {
            *slot = section;
            count += 1;
        }
        count
    }

    fn random(&self) -> [u64; 2] {
        let mut boot = 0;
        // SAFETY: `boot` is ours.
        let interrupt_time = unsafe { KeQueryInterruptTimePrecise(&raw mut boot) };
        // SAFETY: the frequency is not wanted.
        let counter = unsafe { KeQueryPerformanceCounter(core::ptr::null_mut()) };
        let stack = &raw const boot as u64;
        // SAFETY: RDTSC does nothing but read.
        let first = unsafe { _rdtsc() };
        let seed = mix(first ^ interrupt_time.rotate_left(32)) ^ mix(quad(counter) ^ stack);
        // SAFETY: as above.
        let last = unsafe { _rdtsc() };
        [
            mix(seed) ^ hardware_random(),
            mix(seed ^ last.rotate_left(17) ^ self.image) ^ hardware_random(),
        ]
    }
}

/// A random number of the processor's, 0 if it has none to give.
fn hardware_random() -> u64 {
    const RDRAND: u32 = 1 << 30;
    if __cpuid(1).ecx & RDRAND == 0 {
        return 0;
    }
    // SAFETY: CPUID says that the instruction is there.
    unsafe { rdrand() }
}

#[target_feature(enable = "rdrand")]
fn rdrand() -> u64 {
    let mut value = 0;
    // Ten tries: Intel SDM vol. 1, "RDRAND".
    for _ in 0..10 {
        if core::arch::x86_64::_rdrand64_step(&mut value) == 1 {
            return value;
        }
    }
    0
}

/// Spreads every bit over all (the finalizer of SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}
