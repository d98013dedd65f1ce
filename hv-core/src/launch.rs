//! Taking all cores over as one, and giving them back.
//!
//! Guest context at PASSIVE_LEVEL. The phases: every core is **probed** without
//! any change; everything is **allocated** and built; each core is **launched** in
//! turn. Any failure gives back the cores that had been taken over, then the
//! memory: the machine is as before. After the first core has been launched no
//! private memory is touched from here on a core that is a guest.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ept::addr::{Gpa, Hpa, Pfn};
use ept::entry::{Access, EptFormat, NptFormat, Soft};
use ept::memtype::MtrrState;
use ept::pool::{MAX_CHUNKS, Pool};
use ept::private::PrivatePath;
use ept::space::Space;
use ept::table::Table;
use ept::wx::PageState;

use crate::backend::{Features, Nested, Vendor};
use crate::counters::{Counters, Totals};
use crate::emulate::msr::fill_bitmap;
use crate::error::{StartError, Step};
use crate::host::descriptors::{
    IST_DOUBLE_FAULT, IST_MACHINE_CHECK, IST_NMI, Tss, fill_gdt, gate, tss_descriptor,
};
use crate::host::paging::{self, Depth, HostSpace, HostTable};
use crate::host::stubs;
use crate::host::window::{self, Window};
use crate::hypercall::{self, Figure};
use crate::hypervisor::{Hypervisor, MAX_CORES};
use crate::instr::{self, VmFail};
use crate::ledger::{Ledger, Visibility};
use crate::monitor::Monitor;
use crate::percpu::{Core, INTERRUPT_STACK_BYTES};
use crate::platform::{ImageSection, MAX_IMAGE_SECTIONS, Platform, Ram, Region};
use crate::probe::{self, Pretend, Probe};
use crate::seeded::{self, Planted};
use crate::{in_either, svm, vmx};

/// How to start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Abilities to be treated as absent.
    pub pretend: Pretend,
}

/// Memory for the monitor, while it is being built.
pub struct Memory<'a> {
    platform: &'a dyn Platform,
    ledger: &'a mut Ledger,
}

impl Memory<'_> {
    /// A block that only root mode sees once the cores have been taken over.
    pub fn private(&mut self, bytes: usize) -> Option<Region> {
        self.ledger
            .allocate(self.platform, bytes, Visibility::Private)
    }

    /// A block that both sides see.
    pub fn shared(&mut self, bytes: usize) -> Option<Region> {
        self.ledger
            .allocate(self.platform, bytes, Visibility::Shared)
    }
}

impl core::fmt::Debug for Memory<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

/// The hypervisor, running on all cores. Held by the driver in guest context.
#[derive(Debug)]
pub struct Machine<P: Platform> {
    platform: P,
    ledger: Ledger,
    counters: Region,
    bounce: Region,
    secret: [u64; 2],
    cores: u32,
    features: Features,
    firmware_locked: bool,
}

/// What the running hypervisor tells about itself.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// Number of cores.
    pub cores: u32,
    /// What the processor can do.
    pub features: Features,
    /// Counters, summed over all cores.
    pub totals: Totals,
    /// Mapped 4 KB pages by state: writable, executable, stepping, exempt, hidden.
    pub pages: [u64; 5],
    /// 2 MB regions mapped by 4 KB leaves.
    pub split_2m: u64,
    /// Nested tables in use.
    pub tables_used: u64,
    /// Nested tables left.
    pub tables_left: u64,
    /// Private bytes of one core.
    pub core_bytes: u64,
    /// Private bytes in all.
    pub private_bytes: u64,
    /// Shared bytes in all.
    pub shared_bytes: u64,
    /// Root mode failed and stopped watching.
    pub abandoned: bool,
    /// The firmware had left `IA32_FEATURE_CONTROL` unlocked; the start set and
    /// locked it, which lasts until the next reset.
    pub firmware_locked: bool,
}

/// Nested tables beyond those that mapping all RAM takes: for splits.
const SPARE_TABLES: usize = 192;
/// The same for each GB of RAM.
const SPARE_TABLES_PER_GB: usize = 64;
const MAX_SPARE_TABLES: usize = 4096;
const CHUNK_TABLES: usize = 256;

impl<P: Platform> Machine<P> {
    /// Takes over all cores.
    ///
    /// `monitor` is called once to build the policy in the memory it asks for;
    /// `code` gives the frames of all code that is to be executable from the
    /// start.
    ///
    /// # Errors
    /// Why not; everything is as before, and the platform is handed back.
    ///
    /// # Safety
    /// Guest context, CPL 0, PASSIVE_LEVEL, one start at a time. `monitor` keeps
    /// the promises of [`Monitor`] and touches, in root mode, only memory that it
    /// was given here and constants of the driver image.
    pub unsafe fn start<M: Monitor + 'static>(
        platform: P,
        options: Options,
        monitor: impl FnOnce(&mut Memory<'_>, &Features) -> Option<M>,
        code: &mut dyn Iterator<Item = Pfn>,
    ) -> Result<Self, (StartError, P)> {
        let probe = match probe_all(&platform, options.pretend) {
            Ok(probe) => probe,
            Err(error) => return Err((error, platform)),
        };
        let Some(mut ledger) = Ledger::new(&platform) else {
            return Err((StartError::NoMemory, platform));
        };
        let built = build(&platform, &mut ledger, &probe, monitor, code);
        let done = built.and_then(|built| {
            launch_all(&platform, &built, probe.features.vendor)?;
            Ok(built)
        });
        match done {
            Ok(built) => Ok(Self {
                cores: platform.cpu_count(),
                platform,
                ledger,
                counters: built.counters,
                bounce: built.bounce,
                secret: built.secret,
                features: probe.features,
                firmware_locked: probe.firmware_open,
            }),
            Err(error) => {
                // SAFETY: every core that was taken over has been given back.
                unsafe { ledger.release(&platform) };
                Err((error, platform))
            }
        }
    }

    /// Gives all cores and all memory back. `last_look` is called in between: the
    /// cores have left and the shared memory is still there.
    ///
    /// # Errors
    /// A core could not be reached; it is still a guest, so nothing was freed and
    /// the machine goes on being watched as far as it is.
    pub fn stop(self, last_look: impl FnOnce()) -> Result<P, (StartError, Self)> {
        for core in 0..self.cores {
            if !self.is_lost(core)
                && !give_back(&self.platform, core, self.features.vendor, self.secret)
            {
                return Err((StartError::Unreachable { core }, self));
            }
        }
        last_look();
        let Self {
            platform, ledger, ..
        } = self;
        // SAFETY: every core has left.
        unsafe { ledger.release(&platform) };
        Ok(platform)
    }

    /// Hands data to the monitor, page by page, then makes it current. `false`
    /// when root mode refuses it. One caller at a time.
    #[must_use]
    pub fn publish(&self, data: &[u8]) -> bool {
        for (index, chunk) in data.chunks(4096).enumerate() {
            let page = self.bounce.va as *mut u8;
            // SAFETY: a page of our own, resident, used by this caller alone.
            unsafe { core::ptr::write_bytes(page, 0, 4096) };
            // SAFETY: a chunk is at most a page.
            unsafe { core::ptr::copy_nonoverlapping(chunk.as_ptr(), page, chunk.len()) };
            let answer = self.call(hypercall::PUBLISH, index as u64, self.bounce.va);
            if answer != Some(hypercall::OK) {
                return false;
            }
        }
        self.call(hypercall::COMMIT, data.len() as u64, 0) == Some(hypercall::OK)
    }

    /// Tells root mode which memory there is now: it can be added to a running
    /// machine. `false` when the list cannot be had, or root mode refuses it. Not
    /// together with [`Self::publish`].
    #[must_use]
    pub fn refresh_memory(&self) -> bool {
        let Some(ram) = self.platform.ram() else {
            return false;
        };
        const { assert!(size_of::<Ram>() <= 4096) }
        let page = self.bounce.va as *mut Ram;
        // SAFETY: a page of our own, resident, used by this caller alone.
        unsafe { page.write(ram) };
        self.call(hypercall::MEMORY, 0, self.bounce.va) == Some(hypercall::OK)
    }

    /// Asks root mode. `None` when a core has been let go (AMD, INIT): this may be
    /// that core, on which the call is undefined.
    fn call(&self, operation: u64, first: u64, second: u64) -> Option<u64> {
        if (0..self.cores).any(|core| self.is_lost(core)) {
            return None;
        }
        // SAFETY: this core is a guest: all are, and none leaves meanwhile.
        Some(unsafe {
            hypercall::call(self.features.vendor, self.secret, operation, first, second)
        })
    }

    /// Whether a core has been let go to be reset, and is no guest any more.
    fn is_lost(&self, core: u32) -> bool {
        counters(self.counters, core).lost.load(Ordering::Acquire) != 0
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let measure = |figure: Figure| self.call(hypercall::MEASURE, figure as u64, 0).unwrap_or(0);
        let mut totals = Totals::zero();
        for core in 0..self.cores {
            totals.add(counters(self.counters, core));
        }
        Status {
            cores: self.cores,
            features: self.features,
            totals,
            pages: [
                measure(Figure::Writable),
                measure(Figure::Executable),
                measure(Figure::Stepping),
                measure(Figure::Exempt),
                measure(Figure::Hidden),
            ],
            split_2m: measure(Figure::Split2M),
            tables_used: measure(Figure::TablesUsed),
            tables_left: measure(Figure::TablesLeft),
            core_bytes: size_of::<Core>() as u64,
            private_bytes: self.ledger.bytes(Visibility::Private) as u64,
            shared_bytes: self.ledger.bytes(Visibility::Shared) as u64,
            abandoned: measure(Figure::Abandoned) != 0,
            firmware_locked: self.firmware_locked,
        }
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }
}

fn counters<'a>(region: Region, core: u32) -> &'a Counters {
    let address = region.va + u64::from(core) * size_of::<Counters>() as u64;
    // SAFETY: the region holds one structure for each core, all atomics, and is
    // freed only after the machine has been stopped.
    unsafe { &*(address as *const Counters) }
}

/// What is left to do once everything is built.
struct Built {
    hypervisor: *const Hypervisor,
    cores: &'static [*const Core],
    bounce: Region,
    counters: Region,
    secret: [u64; 2],
}

#[inline(never)]
fn probe_all(platform: &dyn Platform, pretend: Pretend) -> Result<Probe, StartError> {
    let count = platform.cpu_count();
    if count == 0 || count as usize > MAX_CORES {
        return Err(StartError::Cores);
    }
    let mut first: Option<Probe> = None;
    for core in 0..count {
        let mut result = Err(StartError::Unreachable { core });
        let reached = platform.run_on(core, &mut || {
            // SAFETY: CPL 0 is the platform's.
            result = unsafe { probe::probe(pretend) };
        });
        if !reached {
            return Err(StartError::Unreachable { core });
        }
        let probe = match result {
            // Another core before it was not.
            Err(StartError::LockedOff | StartError::SwitchedOff) if first.is_some() => {
                return Err(StartError::UnequalFirmware);
            }
            result => result?,
        };
        match first {
            None => first = Some(probe),
            Some(first) if first.firmware != probe.firmware => {
                return Err(StartError::UnequalFirmware);
            }
            Some(first) if first != probe => return Err(StartError::MissingControl),
            Some(_) => {}
        }
    }
    first.ok_or(StartError::Cores)
}

#[inline(never)]
fn build<M: Monitor + 'static>(
    platform: &dyn Platform,
    ledger: &mut Ledger,
    probe: &Probe,
    monitor: impl FnOnce(&mut Memory<'_>, &Features) -> Option<M>,
    code: &mut dyn Iterator<Item = Pfn>,
) -> Result<Built, StartError> {
    let count = platform.cpu_count();
    let mut sections = [ImageSection::default(); MAX_IMAGE_SECTIONS];
    let section_count = platform.image_sections(&mut sections);
    let sections = sections.get(..section_count).ok_or(StartError::Image)?;
    let image = (
        sections
            .iter()
            .map(|s| s.va)
            .min()
            .ok_or(StartError::Image)?,
        sections
            .iter()
            .map(|s| s.va + s.bytes as u64)
            .max()
            .ok_or(StartError::Image)?,
    );

    let dummy = take(platform, ledger, 4096, Visibility::Plain)?;
    let region = take(
        platform,
        ledger,
        size_of::<Hypervisor>(),
        Visibility::Private,
    )?;
    let hypervisor = region.va as *mut Hypervisor;
    let idt = take(platform, ledger, 4096, Visibility::Private)?;
    // One page of it is Intel's, two are AMD's.
    let bitmap = take(platform, ledger, 8192, Visibility::Private)?;
    let counter_region = take(
        platform,
        ledger,
        count as usize * size_of::<Counters>(),
        Visibility::Shared,
    )?;
    // A list that the guest keeps: the launch of a core needs it while others
    // are guests already.
    let list = take(
        platform,
        ledger,
        count as usize * size_of::<*const Core>(),
        Visibility::Plain,
    )?;
    // SAFETY: the block is large enough, and only this function writes it.
    let cores =
        unsafe { core::slice::from_raw_parts_mut(list.va as *mut *const Core, count as usize) };
    for slot in cores.iter_mut() {
        *slot = take(platform, ledger, size_of::<Core>(), Visibility::Private)?.va as *const Core;
    }
    let cores: &'static [*const Core] = cores;
    let bounce = take(platform, ledger, 4096, Visibility::Plain)?;
    // SAFETY: the block is large enough, page-aligned, zeroed and nobody else's;
    // zero is a valid value of every field that is not set below.
    unsafe { set_mtrr(hypervisor, probe.phys_bits) };
    // SAFETY: as above.
    unsafe { set_fields(hypervisor, probe, image, cores) };
    // SAFETY: a field of the same block.
    let ram = unsafe { (*hypervisor).ram.first() };
    set_ram(platform, ram)?;
    let monitor = place_monitor(platform, ledger, probe, monitor)?;
    // SAFETY: a field of the same block.
    let mtrr: &'static MtrrState = unsafe { &(*hypervisor).mtrr };
    // SAFETY: a field of the same block; nothing holds a reference to it.
    let slot = unsafe { &mut (*hypervisor).space };
    let space = nested(platform, ledger, probe, ram, mtrr, slot)?;
    promote(space, code)?;
    let host_root = host_tables(platform, ledger, sections, cores)?;
    hide(space, ledger, dummy.pa)?;
    fill_idt(idt);
    match probe.features.vendor {
        Vendor::Intel => {
            // SAFETY: a page of our own.
            let page = unsafe { &mut *(bitmap.va as *mut [u8; 4096]) };
            // SAFETY: a field of a block of our own.
            fill_bitmap(page, unsafe { (*hypervisor).variable_ranges });
        }
        // SAFETY: two pages of our own.
        Vendor::Amd => svm::msr::fill_map(unsafe { &mut *(bitmap.va as *mut [u8; 8192]) }),
    }

    let secret = platform.random();
    // SAFETY: the block is ours alone until the first launch.
    let fields = unsafe { &mut *hypervisor };
    fields.secret = secret;
    fields.host_cr3 = host_root;
    fields.idt = idt.va;
    fields.msr_bitmap = bitmap.pa;
    let root = in_either!(space, space => space.root());
    match probe.features.vendor {
        Vendor::Intel => fields.vmx.eptp = vmx::vcpu::eptp(root),
        Vendor::Amd => fields.svm.n_cr3 = root.as_u64(),
    }
    fields.monitor = Some(monitor);

    for (index, block) in (0..count).zip(cores.iter().copied()) {
        // SAFETY: one block for each core, ours alone until the launch.
        let own = unsafe { &*block };
        let base = platform
            .physical_address(core::ptr::from_ref::<Core>(own) as u64)
            .ok_or(StartError::NoMemory)?;
        set_core(
            own,
            index,
            hypervisor,
            counters(counter_region, index),
            base,
        )?;
    }
    Ok(Built {
        hypervisor,
        cores,
        bounce,
        counters: counter_region,
        secret,
    })
}

#[inline(never)]
fn set_ram(platform: &dyn Platform, ram: &mut Ram) -> Result<(), StartError> {
    *ram = platform.ram().ok_or(StartError::MemoryMap)?;
    Ok(())
}

#[inline(never)]
fn place_monitor<M: Monitor + 'static>(
    platform: &dyn Platform,
    ledger: &mut Ledger,
    probe: &Probe,
    monitor: impl FnOnce(&mut Memory<'_>, &Features) -> Option<M>,
) -> Result<&'static M, StartError> {
    let region = take(platform, ledger, size_of::<M>(), Visibility::Private)?;
    let monitor =
        monitor(&mut Memory { platform, ledger }, &probe.features).ok_or(StartError::NoMemory)?;
    let place = region.va as *mut M;
    // SAFETY: the block is large enough and page-aligned.
    unsafe { place.write(monitor) };
    // SAFETY: just written; the block outlives every core's stay in root mode.
    Ok(unsafe { &*place })
}

/// Makes the frames of all live code executable. Before the launch nothing is
/// cached, so no flush is owed.
#[inline(never)]
fn promote(space: &Nested, code: &mut dyn Iterator<Item = Pfn>) -> Result<(), StartError> {
    let soft = Soft {
        state: PageState::Executable,
        bounces: 0,
        code: true,
    };
    for pfn in code {
        let _ = in_either!(space, space => space.set_state(pfn.gpa(), soft))
            .map_err(|_| StartError::Tables)?;
    }
    Ok(())
}

/// Puts a dummy frame in the place of every private page.
#[inline(never)]
fn hide(space: &Nested, ledger: &Ledger, dummy: Hpa) -> Result<(), StartError> {
    for region in ledger.regions(Visibility::Private) {
        let left_out = if seeded::is(Planted::LeaveFrameMapped) {
            4096
        } else {
            0
        };
        for page in (left_out..region.bytes as u64).step_by(4096) {
            let gpa = Gpa::new(region.pa.as_u64() + page);
            let _ = in_either!(space, space => space.remap(gpa, dummy, Access::RW))
                .map_err(|_| StartError::Tables)?;
        }
    }
    Ok(())
}

fn take(
    platform: &dyn Platform,
    ledger: &mut Ledger,
    bytes: usize,
    visibility: Visibility,
) -> Result<Region, StartError> {
    ledger
        .allocate(platform, bytes, visibility)
        .ok_or(StartError::NoMemory)
}

/// # Safety
/// `hypervisor` points to a block of its size that nobody else uses.
#[inline(never)]
unsafe fn set_mtrr(hypervisor: *mut Hypervisor, phys_bits: u8) {
    // SAFETY: CPL 0.
    let raw = unsafe { probe::mtrrs() };
    let pairs = raw
        .variable
        .get(..(raw.count as usize).min(raw.variable.len()))
        .unwrap_or(&[]);
    // SAFETY: the caller's promise.
    let ranges = unsafe { &raw mut (*hypervisor).variable_ranges };
    // SAFETY: the caller's promise.
    unsafe { ranges.write(raw.count) };
    // SAFETY: the caller's promise; all zeros are a valid value.
    let mtrr = unsafe { &mut (*hypervisor).mtrr };
    if seeded::is(Planted::WrongTypes) {
        // Write-back everywhere.
        mtrr.load(raw.cap, 1 << 11 | 6, raw.fixed, &[], phys_bits);
        return;
    }
    mtrr.load(raw.cap, raw.def_type, raw.fixed, pairs, phys_bits);
}

/// # Safety
/// `hypervisor` points to a zeroed block of its size that nobody else uses, whose
/// `mtrr` has been set.
#[inline(never)]
unsafe fn set_fields(
    hypervisor: *mut Hypervisor,
    probe: &Probe,
    image: (u64, u64),
    cores: &[*const Core],
) {
    macro_rules! set {
        ($field:ident, $value:expr) => {{
            // SAFETY: the caller's promise.
            let field = unsafe { &raw mut (*hypervisor).$field };
            // SAFETY: the caller's promise.
            unsafe { field.write($value) };
        }};
    }
    set!(secret, [0; 2]);
    set!(image, image);
    set!(features, probe.features);
    set!(vmx, probe.vmx);
    set!(svm, probe.svm);
    set!(vacate, probe.large_page_erratum);
    set!(host_cr3, 0);
    set!(idt, 0);
    set!(msr_bitmap, Hpa::new(0));
    set!(space, None);
    set!(transition, crate::transition::TransitionLock::new());
    set!(generation, AtomicU64::new(1));
    set!(monitor, None);
    for (index, core) in cores.iter().enumerate().take(MAX_CORES) {
        // SAFETY: the caller's promise.
        let list = unsafe { &raw mut (*hypervisor).cores };
        // SAFETY: the index is below the array's length.
        let slot = unsafe { list.cast::<*const Core>().add(index) };
        // SAFETY: as above.
        unsafe { slot.write(*core) };
    }
    set!(count, cores.len().min(MAX_CORES));
    set!(abandoned, AtomicBool::new(false));
}

#[inline(never)]
fn nested(
    platform: &dyn Platform,
    ledger: &mut Ledger,
    probe: &Probe,
    ram: &Ram,
    mtrr: &'static MtrrState,
    slot: &'static mut Option<Nested>,
) -> Result<&'static Nested, StartError> {
    let gigabytes = usize::try_from(ram.end() >> 30).unwrap_or(0) + 1;
    let extra = (SPARE_TABLES + SPARE_TABLES_PER_GB * gigabytes).min(MAX_SPARE_TABLES);
    // A directory for each GB, the upper tables, two for each core's block.
    let wanted = gigabytes + 8 + extra + 2 * platform.cpu_count() as usize;
    let chunk_tables = CHUNK_TABLES.max(wanted.div_ceil(MAX_CHUNKS));
    let empty: &'static [Table] = &[];
    let mut chunks = [(Hpa::new(0), empty); MAX_CHUNKS];
    let mut used = 0;
    let mut left = wanted;
    while left > 0 {
        let tables = left.min(chunk_tables);
        let region = take(platform, ledger, tables * 4096, Visibility::Private)?;
        // SAFETY: the block holds that many zeroed tables and outlives every core's
        // stay in root mode.
        let slice = unsafe { core::slice::from_raw_parts(region.va as *const Table, tables) };
        let slot = chunks.get_mut(used).ok_or(StartError::Tables)?;
        *slot = (region.pa, slice);
        used += 1;
        left -= tables;
    }
    let pool = Pool::new(chunks.get(..used).unwrap_or(&[])).ok_or(StartError::Tables)?;
    let (bits, leaf_1g) = (probe.phys_bits, probe.features.leaf_1g);
    let empty = match probe.features.vendor {
        Vendor::Intel => {
            let format = EptFormat {
                mbec: probe.features.mbec,
            };
            Space::new(format, pool, mtrr, bits, leaf_1g).map(Nested::Ept)
        }
        Vendor::Amd => {
            let format = NptFormat {
                gmet: probe.features.mbec,
            };
            Space::new(format, pool, mtrr, bits, leaf_1g).map(Nested::Npt)
        }
    };
    let space: &'static Nested = slot.insert(empty.map_err(|_| StartError::Tables)?);
    for range in ram.iter() {
        // Before the launch nothing is cached: no flush is owed.
        let range = Gpa::new(range.base)..Gpa::new(range.base + range.bytes);
        let _ = in_either!(space, space => space.fill(range)).map_err(|_| StartError::Tables)?;
    }
    Ok(space)
}

/// Root mode's page tables; returns CR3.
#[inline(never)]
fn host_tables(
    platform: &dyn Platform,
    ledger: &mut Ledger,
    sections: &[ImageSection],
    cores: &[*const Core],
) -> Result<u64, StartError> {
    // Private copies of the image's sections, to be mapped where the image is.
    let mut copies = [Region {
        va: 0,
        pa: Hpa::new(0),
        bytes: 0,
    }; MAX_IMAGE_SECTIONS];
    for (copy, section) in copies.iter_mut().zip(sections) {
        let bytes = section.bytes.next_multiple_of(4096);
        *copy = take(platform, ledger, bytes, Visibility::Private)?;
        // SAFETY: a resident section of our own image, and a block as large.
        unsafe {
            core::ptr::copy_nonoverlapping(section.va as *const u8, copy.va as *mut u8, bytes);
        };
    }
    // SAFETY: reads a register at CPL 0.
    let depth = Depth::of(unsafe { instr::cr4() });
    let tables_for = |bytes: usize| HostSpace::tables_for(bytes, depth);
    let mapped = |region: &Region| tables_for(region.bytes);
    let tables: usize = 1
        + tables_for(window::span(cores.len()))
        + copies.iter().map(mapped).sum::<usize>()
        + ledger
            .regions(Visibility::Private)
            .chain(ledger.regions(Visibility::Shared))
            .map(|region| mapped(&region))
            .sum::<usize>();
    // The tables map themselves, too.
    let tables = tables + tables_for(tables * 4096) + 1;
    let region = take(platform, ledger, tables * 4096, Visibility::Private)?;
    // SAFETY: the block holds that many zeroed tables and outlives every core's
    // stay in root mode.
    let slice = unsafe { core::slice::from_raw_parts(region.va as *const HostTable, tables) };
    let mut space = HostSpace::new(slice, depth, region.pa.as_u64()).ok_or(StartError::Tables)?;
    let mut map = |va: u64, pa: u64, bytes: usize, flags: u64| {
        (0..bytes.next_multiple_of(4096) as u64)
            .step_by(4096)
            .all(|offset| space.map(va + offset, pa + offset, flags))
            .then_some(())
            .ok_or(StartError::Tables)
    };
    let data = paging::page_flags(true, false);
    for (copy, section) in copies.iter().zip(sections) {
        let flags = paging::page_flags(section.writable, section.executable);
        map(section.va, copy.pa.as_u64(), section.bytes, flags)?;
    }
    for region in ledger
        .regions(Visibility::Private)
        .chain(ledger.regions(Visibility::Shared))
    {
        map(region.va, region.pa.as_u64(), region.bytes, data)?;
    }
    for core in cores {
        // SAFETY: one block for each core.
        let core = unsafe { &**core };
        for guard in [&raw const core.guard_low, &raw const core.guard_high] {
            map(guard as u64, 0, 4096, 0)?;
        }
    }
    map(window::address(0, 0), 0, window::span(cores.len()), 0)?;
    for (index, core) in cores.iter().enumerate() {
        // SAFETY: one block for each core.
        let state = unsafe { &(**core).state };
        let window = |number| -> Result<Window, StartError> {
            let va = window::address(index, number);
            let entry = space.entry(va).ok_or(StartError::Tables)?;
            Ok(Window::new(va, entry))
        };
        state.apic_window.set(Some(window(0)?));
        for (number, view) in (1..).zip(state.views.each()) {
            view.set(window(number)?);
        }
    }
    Ok(space.root())
}

fn fill_idt(region: Region) {
    let table = region.va as *mut [u64; 2];
    for vector in 0..32_u8 {
        let (handler, ist) = match vector {
            2 => (stubs::nmi_address(), IST_NMI),
            8 => (stubs::exception_address(8), IST_DOUBLE_FAULT),
            18 => (stubs::exception_address(18), IST_MACHINE_CHECK),
            _ => (stubs::exception_address(vector), 0),
        };
        // SAFETY: the page holds 256 gates.
        let slot = unsafe { table.add(usize::from(vector)) };
        // SAFETY: as above.
        unsafe { slot.write(gate(handler, instr::cs() & !7, ist)) };
    }
}

fn set_core(
    core: &Core,
    index: u32,
    hypervisor: *const Hypervisor,
    counters: &Counters,
    base: Hpa,
) -> Result<(), StartError> {
    let offset = |field: u64| base.as_u64() + (field - core::ptr::from_ref::<Core>(core) as u64);
    let state = &core.state;
    state.this.set(core::ptr::from_ref::<Core>(core) as u64);
    state.index.set(index);
    state.hypervisor.set(hypervisor);
    state.counters.set(counters);
    for (address, region) in state.regions_pa.iter().zip(&core.regions) {
        address.set(offset(core::ptr::from_ref(region) as u64));
    }
    let base = Hpa::new(offset(&raw const core.private as u64));
    let tables = (&raw const core.private).cast::<Table>();
    // SAFETY: the block lives as long as the core is in root mode.
    let tables: &'static [Table] =
        unsafe { core::slice::from_raw_parts(tables, core.private.len()) };
    let path = PrivatePath::in_chunk(base, tables).ok_or(StartError::Tables)?;
    // SAFETY: nobody holds a reference to it yet.
    let slot = unsafe { &mut *state.path.get() };
    slot.write(path);
    Ok(())
}

#[inline(never)]
fn launch_all(platform: &dyn Platform, built: &Built, vendor: Vendor) -> Result<(), StartError> {
    let count = platform.cpu_count();
    for (index, core) in (0..count).zip(built.cores.iter().copied()) {
        let mut result = Err((Step::Enter, VmFail::Invalid));
        let reached = !seeded::launch_fails(5, index)
            && platform.run_on(index, &mut || {
                // SAFETY: built for this core; runs on it, at CPL 0.
                result = unsafe { launch(core, built.hypervisor, built.secret) };
            });
        let failed = match result {
            _ if !reached => Some(StartError::Unreachable { core: index }),
            Ok(()) => None,
            Err((step, fail)) => Some(StartError::Core {
                core: index,
                step,
                fail,
            }),
        };
        if let Some(error) = failed {
            let first = u32::from(seeded::is(Planted::HalfRollback));
            for launched in first..index {
                // A core that cannot be reached here was reached a moment ago.
                let _ = give_back(platform, launched, vendor, built.secret);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes the running core over.
///
/// # Safety
/// Everything has been built for this core; CPL 0.
unsafe fn launch(
    core: *const Core,
    hypervisor: *const Hypervisor,
    secret: [u64; 2],
) -> Result<(), (Step, VmFail)> {
    // SAFETY: the caller's promise; the core is no guest yet, so it sees its block.
    let core = unsafe { &*core };
    // SAFETY: as above.
    let hypervisor = unsafe { &*hypervisor };
    let flags = instr::rflags();
    // SAFETY: set again below.
    unsafe { instr::cli() };
    // SAFETY: the caller's promise.
    let result = unsafe { launch_masked(core, hypervisor, secret) };
    if flags & 1 << 9 != 0 {
        // SAFETY: interrupts were allowed before.
        unsafe { instr::sti() };
    }
    result
}

/// # Safety
/// As [`launch`], with interrupts off.
#[inline(never)]
unsafe fn launch_masked(
    core: &Core,
    hypervisor: &Hypervisor,
    secret: [u64; 2],
) -> Result<(), (Step, VmFail)> {
    let index = core.state.index.get();
    if !prepare(core) {
        return Err((Step::Enter, VmFail::Invalid));
    }
    let vendor = hypervisor.features.vendor;
    match vendor {
        // SAFETY: built for this core, interrupts are off.
        Vendor::Intel => unsafe { vmx::launch::launch(core, hypervisor) },
        // SAFETY: as above.
        Vendor::Amd => unsafe { svm::launch::launch(core, hypervisor) },
    }?;
    // From here on this core is a guest; its private memory is out of reach.
    // SAFETY: this core is a guest.
    let answer = unsafe { hypercall::call(vendor, secret, hypercall::ACTIVATE, 0, 0) };
    if answer != hypercall::OK || seeded::launch_fails(4, index) {
        // SAFETY: this core is a guest.
        let _ = unsafe { hypercall::call(vendor, secret, hypercall::LEAVE, 0, 0) };
        return Err((Step::Activate, VmFail::Invalid));
    }
    Ok(())
}

/// Fills what only the core itself knows. `false` when its selectors are none that
/// 64-bit kernel code runs with.
fn prepare(core: &Core) -> bool {
    let stack = |index: usize| {
        let base = &raw const core.interrupt_stacks as u64;
        base + ((index + 1) * INTERRUPT_STACK_BYTES) as u64
    };
    let descriptors = (&raw const core.descriptors).cast_mut();
    // SAFETY: the page is the core's own, and nobody uses it yet.
    let descriptors = unsafe { &mut *descriptors };
    descriptors.tss = Tss::new(stack(0), stack(1), stack(2));
    let tss = tss_descriptor(&raw const descriptors.tss as u64, 103);
    let filled = fill_gdt(
        &mut descriptors.gdt,
        instr::cs(),
        instr::ss(),
        instr::tr(),
        tss,
    );
    core.state.apic_id.set(apic_id());
    filled
}

/// The local APIC identifier of the running core: 32 bits where the processor has
/// x2APIC, else 8.
fn apic_id() -> u32 {
    if core::arch::x86_64::__cpuid(0).eax >= 0xB {
        let leaf = core::arch::x86_64::__cpuid_count(0xB, 0);
        if leaf.ebx != 0 {
            return leaf.edx;
        }
    }
    core::arch::x86_64::__cpuid(1).ebx >> 24
}

/// Asks one core to leave. `false` when it cannot be reached.
fn give_back(platform: &dyn Platform, core: u32, vendor: Vendor, secret: [u64; 2]) -> bool {
    if seeded::is(Planted::CannotLeave) && core + 1 == platform.cpu_count() {
        return false;
    }
    platform.run_on(core, &mut || {
        let flags = instr::rflags();
        // SAFETY: set again below.
        unsafe { instr::cli() };
        // SAFETY: this core is a guest.
        let _ = unsafe { hypercall::call(vendor, secret, hypercall::LEAVE, 0, 0) };
        if flags & 1 << 9 != 0 {
            // SAFETY: interrupts were allowed before.
            unsafe { instr::sti() };
        }
    })
}
