//! The core's test of itself, run by the `core-only` build after start-up: the
//! exports as a driver calls them, on every processor. Ends the machine with 0 if
//! all hold, with 1 at the first that does not.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::hal::{boot, clock, cpu, firmware, instr, power};
use crate::ke::affinity::{self, GroupAffinity, ProcessorNumber};
use crate::ke::event::{self, Event};
use crate::ke::{
    self, dpc, extended, ipi, irql, mutex, nmi, semaphore, spinlock_exports, thread, time, timer,
    wait,
};
use crate::mm::{PAGE_SIZE, contiguous, io_space, mdl, paging, physical, pool, query};
use crate::ps;

macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            log!(
                "SELFTEST line {}: {} does not hold",
                line!(),
                stringify!($condition)
            );
            power::exit(1);
        }
    };
}

/// A `with_caller!` export as the function that it is for its callers.
macro_rules! typed {
    ($export:path, $type:ty) => {{
        let export = $export as *const ();
        // SAFETY: the type is the documented signature of the export.
        unsafe { core::mem::transmute::<*const (), $type>(export) }
    }};
}

macro_rules! call {
    ($($call:tt)*) => {{
        // SAFETY: documented arguments at a documented IRQL.
        unsafe { $($call)* }
    }};
}

type Part = (&'static str, fn());

const PARTS: [Part; 18] = [
    ("tables", tables),
    ("firmware", firmware_state),
    ("pool", pool_blocks),
    ("contiguous", contiguous_memory),
    ("views", views),
    ("shoot-down", shoot_down),
    ("affinity", affinities),
    ("dpc", dpcs),
    ("generic call", generic_calls),
    ("ipi", ipis),
    ("wait", waits),
    ("lock", locks),
    ("timer", timers),
    ("threads", threads),
    ("extended state", extended_state),
    ("nmi", nmis),
    ("ring 3", ring3),
    ("restart", restarts),
];

/// Runs all parts, or those that `part=` names, and ends the machine.
pub(crate) fn run() -> ! {
    let free = physical::free_pages();
    for (name, part) in PARTS {
        if boot::option("part").is_none_or(|wanted| wanted == name) {
            part();
            log!("SELFTEST {name}: passed");
        }
    }
    wait::sleep(100_000);
    log!(
        "{} pages less are free, small blocks {:?}",
        free as isize - physical::free_pages() as isize,
        pool::usage()
    );
    drills();
    log!("SELFTEST passed");
    power::exit(0)
}

/// `drill=`: things that must end in a bugcheck.
fn drills() {
    let Some(drill) = boot::option("drill") else {
        return;
    };
    let allocate = typed!(
        pool::ExAllocatePool2,
        unsafe extern "C" fn(u64, usize, u32) -> *mut u8
    );
    let block = call!(allocate(0x40, 100, 1));
    match drill {
        "read-null" => {
            // SAFETY: none; the fault is the point.
            unsafe { ptr::null::<u32>().wrapping_add(4).read_volatile() };
        }
        "write-text" => {
            // SAFETY: none; the fault is the point.
            unsafe { (run as *const () as *mut u8).write_volatile(0xCC) };
        }
        "execute-pool" => {
            // SAFETY: none; the fault is the point.
            let routine: extern "C" fn() = unsafe { core::mem::transmute(block) };
            routine();
        }
        "fault-at-dispatch" => {
            irql::raise(2);
            // SAFETY: none; the fault is the point.
            unsafe { (0x1000 as *const u32).read_volatile() };
        }
        "overrun" => {
            // SAFETY: none; the overrun is the point.
            unsafe { block.wrapping_add(100).write(1) };
            call!(pool::ExFreePoolWithTag(block.cast(), 1));
        }
        "double-free" => {
            call!(pool::ExFreePoolWithTag(block.cast(), 1));
            call!(pool::ExFreePoolWithTag(block.cast(), 1));
        }
        "wait-at-dispatch" => {
            irql::raise(2);
            wait::sleep(1);
        }
        "stack-overflow" => deep(0),
        "nmi" => crate::hal::apic::send_nmi(cpu::of(0).apic_id.load(Ordering::Relaxed)),
        _ => {}
    }
    clock::stall(100);
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "the overflow is the point")]
fn deep(level: usize) {
    let space = [level; 100];
    core::hint::black_box(&space);
    deep(level + 1);
    core::hint::black_box(&space);
}

fn tables() {
    // SAFETY: every x86-64 processor has these registers.
    let gs = unsafe { instr::rdmsr(0xC000_0101) } as usize;
    check!(gs == instr::gs_u64::<0x18>() as usize);
    // SAFETY: as above.
    let lstar = unsafe { instr::rdmsr(0xC000_0082) } as usize;
    check!(lstar.wrapping_sub(boot::kernel_base()) < boot::kernel_size());
    let text = paging::leaf(paging::system_root(), run as *const () as usize)
        .map(|(entry, _)| entry.load(Ordering::Relaxed));
    check!(
        text.is_some_and(|entry| entry & (paging::WRITE | paging::NO_EXECUTE | paging::USER) == 0)
    );
    let data = paging::leaf(paging::system_root(), (&raw const COUNT) as usize)
        .map(|(entry, _)| entry.load(Ordering::Relaxed));
    check!(data.is_some_and(|entry| entry & paging::WRITE != 0 && entry & paging::NO_EXECUTE != 0));
    check!(irql::current() == 0);
    check!(instr::read_flags() & 0x200 != 0);
    // No page of the kernel half is writable and executable, none is ring 3's.
    let mut pages = 0;
    paging::each_kernel_leaf(&mut |address, entry| {
        pages += 1;
        let wx = entry & paging::WRITE != 0 && entry & paging::NO_EXECUTE == 0;
        if wx || entry & paging::USER != 0 {
            log!("{address:#x}: {entry:#x}");
            power::exit(1);
        }
    });
    check!(pages > 100);
}

/// MTRRs, PAT, FEATURE_CONTROL and VM_CR are the same on all processors and what was asked for.
fn firmware_state() {
    let [_, _, features, _] = instr::cpuid(1, 0);
    // SAFETY: PAT and MTRRs exist on every processor that the lab offers.
    let read = |register| unsafe { instr::rdmsr(register) };
    let sum = || {
        let variable = read(0xFE) & 0xFF;
        (0..2 * variable as u32)
            .map(|number| read(0x200 + number))
            .chain([read(0x277), read(0x2FF), read(0x250)])
            .fold(0u64, |sum, value| sum.rotate_left(7) ^ value)
    };
    let expected = sum();
    check!(read(0x277) == 0x0007_0106_0007_0106);
    check!(read(0x2FF) & 0x800 != 0);
    let wanted = match boot::option("feature_control") {
        Some("locked-off") => [1, 1],
        Some("unlocked") => [4, 4],
        Some("zero") => [0, 0],
        Some("bsp-only") => [5, 0],
        _ => [5, 5],
    };
    on_all(&|number| {
        check!(sum() == expected);
        if features >> 5 & 1 == 1 {
            check!(read(0x3A) & 5 == wanted[usize::from(number > 0)]);
        }
        if firmware::has_svm() {
            check!(read(0xC001_0114) == firmware::expected_vm_cr(number == 0));
        }
        check!(instr::read_cr0() == 0x8005_0033);
    });
    // What drivers read at the fixed address runs.
    let time = || {
        // SAFETY: the page is mapped for good.
        unsafe { (0xFFFF_F780_0000_0008 as *const u64).read_volatile() }
    };
    let from = time();
    wait::sleep(30_000);
    check!(time() > from);
}

fn pool_blocks() {
    let allocate = typed!(
        pool::ExAllocatePool2,
        unsafe extern "C" fn(u64, usize, u32) -> *mut u8
    );
    let old = typed!(
        pool::ExAllocatePoolWithTag,
        unsafe extern "C" fn(i32, usize, u32) -> *mut u8
    );
    for size in [
        1, 8, 16, 31, 100, 500, 1000, 2000, 3900, 4000, 4095, 4096, 4097, 8192, 100_000,
    ] {
        let block = call!(allocate(0x40, size, 0x3131_3131));
        check!(!block.is_null());
        let aligned = if size >= PAGE_SIZE { PAGE_SIZE } else { 16 };
        check!((block as usize).is_multiple_of(aligned));
        if size <= PAGE_SIZE {
            check!(block as usize / PAGE_SIZE == (block as usize + size - 1) / PAGE_SIZE);
        }
        // SAFETY: the block just made.
        let bytes = unsafe { core::slice::from_raw_parts_mut(block, size) };
        check!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(0x77);
        let entry = paging::leaf(paging::system_root(), block as usize)
            .map(|(entry, _)| entry.load(Ordering::Relaxed));
        check!(entry.is_some_and(|entry| entry & paging::NO_EXECUTE != 0));
        let physical = call!(query::MmGetPhysicalAddress(block.cast())) as u64;
        check!(physical::is_ram(physical, 1));
        check!(call!(query::MmGetVirtualForPhysical(physical as i64)) == block.cast());
        call!(pool::ExFreePoolWithTag(block.cast(), 0x3131_3131));
        if size >= PAGE_SIZE {
            check!(call!(query::MmIsAddressValid(block.cast())) == 0);
        }
    }
    // Executable pool runs code.
    for (pool_type, executable) in [(0, true), (512, false)] {
        let block = call!(old(pool_type, 64, 0x3232_3232));
        let entry = paging::leaf(paging::system_root(), block as usize)
            .map(|(entry, _)| entry.load(Ordering::Relaxed));
        check!(entry.is_some_and(|entry| (entry & paging::NO_EXECUTE == 0) == executable));
        if executable {
            let code = [0xB8u8, 0x2A, 0, 0, 0, 0xC3];
            // SAFETY: the block has 64 bytes.
            unsafe { ptr::copy_nonoverlapping(code.as_ptr(), block, code.len()) };
            // SAFETY: `mov eax, 42; ret` in executable memory.
            let routine: extern "C" fn() -> u32 = unsafe { core::mem::transmute(block) };
            check!(routine() == 42);
        }
        call!(pool::ExFreePoolWithTag(block.cast(), 0));
    }
    // Everybody allocates and frees at once.
    on_all(&|number| {
        let mut blocks = [ptr::null_mut::<u8>(); 16];
        for round in 0..60usize {
            let slot = (round * 7 + number as usize) % blocks.len();
            if !blocks[slot].is_null() {
                // SAFETY: a block of at least one byte.
                check!(unsafe { blocks[slot].read() } == slot as u8 + number as u8);
                call!(pool::ExFreePoolWithTag(blocks[slot].cast(), 0));
            }
            let block = call!(allocate(0x40, 1 + (round * 523) % 9000, 0x3333_3333));
            // SAFETY: a block of at least one byte.
            unsafe { block.write(slot as u8 + number as u8) };
            blocks[slot] = block;
        }
        for block in blocks.into_iter().filter(|block| !block.is_null()) {
            call!(pool::ExFreePoolWithTag(block.cast(), 0));
        }
    });
}

fn contiguous_memory() {
    let allocate = typed!(
        contiguous::MmAllocateContiguousMemorySpecifyCache,
        unsafe extern "C" fn(usize, i64, i64, i64, i32) -> *mut u8
    );
    let block = call!(allocate(
        10 * PAGE_SIZE,
        0x200_0000,
        0x2FF_FFFF,
        0x10_0000,
        1
    ));
    check!(!block.is_null());
    let first = call!(query::MmGetPhysicalAddress(block.cast())) as u64;
    check!(first >= 0x200_0000 && first + 10 * 4096 <= 0x300_0000);
    check!(first >> 20 == (first + 10 * 4096 - 1) >> 20);
    for page in 0..10 {
        let at = block.wrapping_add(page * PAGE_SIZE);
        check!(
            call!(query::MmGetPhysicalAddress(at.cast())) as u64
                == first + (page * PAGE_SIZE) as u64
        );
    }
    call!(contiguous::MmFreeContiguousMemory(block.cast()));
    check!(call!(allocate(PAGE_SIZE, 0x8000_0000_0000, i64::MAX, 0, 1)).is_null());
}

fn views() {
    let allocate = typed!(
        pool::ExAllocatePool2,
        unsafe extern "C" fn(u64, usize, u32) -> *mut u8
    );
    let map = typed!(
        io_space::MmMapIoSpace,
        unsafe extern "C" fn(i64, usize, i32) -> *mut u8
    );
    let block = call!(allocate(0x40, 3 * PAGE_SIZE, 0x3434_3434));
    let physical = call!(query::MmGetPhysicalAddress(
        block.wrapping_add(0x123).cast()
    ));
    let view = call!(map(physical, 16, 1));
    check!(view as usize & 0xFFF == 0x123);
    // SAFETY: 16 mapped bytes.
    unsafe { view.write(0x5A) };
    // SAFETY: inside the block.
    check!(unsafe { block.wrapping_add(0x123).read() } == 0x5A);
    call!(io_space::MmUnmapIoSpace(view.cast(), 16));
    check!(call!(query::MmIsAddressValid(view.cast())) == 0);

    let list = [const { Cell::new(0u64) }; 16];
    let header = list.as_ptr().cast_mut().cast::<mdl::Mdl>();
    // What IoAllocateMdl writes: size, start, length, offset.
    list[1].set((48 + 3 * 8) as u64);
    list[4].set(block as u64);
    list[5].set((PAGE_SIZE * 2) as u64 | 0x10 << 32);
    let lock = typed!(
        mdl::MmProbeAndLockPages,
        unsafe extern "C" fn(*mut mdl::Mdl, i8, i32)
    );
    let map = typed!(
        mdl::MmMapLockedPagesSpecifyCache,
        unsafe extern "C" fn(*mut mdl::Mdl, i8, i32, *mut c_void, u32, u32) -> *mut u8
    );
    call!(lock(header, 0, 1));
    let view = call!(map(header, 0, 1, ptr::null_mut(), 0, 0x4000_0000 | 16));
    check!(view as usize & 0xFFF == 0x10);
    // SAFETY: inside the mapping of three pages.
    unsafe { view.wrapping_add(PAGE_SIZE).write(0x66) };
    // SAFETY: inside the block.
    check!(unsafe { block.wrapping_add(PAGE_SIZE + 0x10).read() } == 0x66);
    check!(call!(mdl::MmProtectMdlSystemAddress(header, 0x02)) == 0);
    let entry = paging::leaf(paging::system_root(), view as usize)
        .map(|(entry, _)| entry.load(Ordering::Relaxed));
    check!(entry.is_some_and(|entry| entry & paging::WRITE == 0));
    call!(mdl::MmUnmapLockedPages(view.cast(), header));
    call!(mdl::MmUnlockPages(header));
    call!(pool::ExFreePoolWithTag(block.cast(), 0));

    let pages = typed!(
        mdl::MmAllocatePagesForMdlEx,
        unsafe extern "C" fn(i64, i64, i64, usize, i32, u32) -> *mut mdl::Mdl
    );
    let list = call!(pages(0, i64::MAX, 0, 5 * PAGE_SIZE, 1, 0));
    check!(!list.is_null());
    let view = call!(map(list, 0, 1, ptr::null_mut(), 0, 16));
    // SAFETY: five mapped pages.
    let bytes = unsafe { core::slice::from_raw_parts(view, 5 * PAGE_SIZE) };
    check!(bytes.iter().all(|&byte| byte == 0));
    call!(mdl::MmUnmapLockedPages(view.cast(), list));
    call!(mdl::MmFreePagesFromMdl(list));
    call!(pool::ExFreePool(list.cast()));

    let mut got = 0;
    let mut bytes = [0u8; 16];
    let source = boot::kernel_base() as u64;
    check!(
        call!(query::MmCopyMemory(
            bytes.as_mut_ptr(),
            source,
            16,
            2,
            &raw mut got
        )) == 0
            && got == 16
    );
    check!(&bytes[..2] == b"MZ");
    check!(
        call!(query::MmCopyMemory(
            bytes.as_mut_ptr(),
            0x10_0000,
            16,
            1,
            &raw mut got
        )) == 0
    );
    check!(&bytes[..8] == b"MININTBT");
    check!(
        call!(query::MmCopyMemory(
            bytes.as_mut_ptr(),
            0xFEE0_0000,
            16,
            1,
            &raw mut got
        )) != 0
            && got == 0
    );
    let ranges = call!(query::MmGetPhysicalMemoryRanges());
    check!(!ranges.is_null());
    call!(pool::ExFreePool(ranges.cast()));
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// Runs `f(number)` in a thread on each processor at once and waits for all.
fn on_all(f: &(dyn Fn(u32) + Sync)) {
    static TURN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn start(argument: usize) {
        // SAFETY: the caller below waits until the thread has ended.
        let f = unsafe { &*(argument as *const &(dyn Fn(u32) + Sync)) };
        let number = TURN.fetch_add(1, Ordering::AcqRel);
        call!(affinity::KeSetSystemAffinityThreadEx(1 << number));
        check!(ke::current_cpu() == number);
        f(number);
        check!(ke::current_cpu() == number);
        call!(affinity::KeRevertToUserAffinityThread());
    }
    TURN.store(0, Ordering::Release);
    let argument = ptr::from_ref(&f) as usize;
    let mut all = [ptr::null::<thread::Thread>(); cpu::MAX_CPUS];
    for slot in all.iter_mut().take(ke::cpu_count() as usize) {
        let thread = thread::create(ps::process::system(), start, argument).expect("memory");
        ps::process::reference(thread.process);
        *slot = thread;
        thread::start(thread);
    }
    for &thread in all.iter().filter(|thread| !thread.is_null()) {
        check!(wait::wait(&[thread.cast()], true, wait::Timeout::Never, "selftest") == 0);
        // SAFETY: this function holds the reference of `create`.
        thread::dereference(unsafe { &*thread });
    }
}

/// After a mapping moved, no processor sees the old frame.
fn shoot_down() {
    let frames = [0, 1].map(|_| physical::allocate_zeroed().expect("memory"));
    for (number, &frame) in frames.iter().enumerate() {
        physical::fill(frame, number as u8 + 1);
    }
    let at = crate::mm::region::SYSTEM.reserve(1).expect("space");
    paging::map_kernel(at, frames[0], paging::Rights::ReadOnly.kernel_bits());
    let want = AtomicU32::new(1);
    let stale = AtomicU32::new(0);
    let ended = AtomicU32::new(0);
    on_all(&|number| {
        if number == 0 {
            for round in 0..200u32 {
                let frame = frames[(round as usize + 1) & 1];
                want.store(0, Ordering::SeqCst);
                let entry = paging::leaf(paging::system_root(), at).expect("mapped").0;
                entry.store(
                    frame | paging::Rights::ReadOnly.kernel_bits(),
                    Ordering::SeqCst,
                );
                crate::mm::tlb::flush(at, 1);
                want.store(1 + ((round + 1) & 1), Ordering::SeqCst);
                clock::stall(2);
            }
            ended.store(1, Ordering::SeqCst);
        } else {
            while ended.load(Ordering::SeqCst) == 0 {
                let before = want.load(Ordering::SeqCst);
                // SAFETY: one of the two frames is always mapped there.
                let seen = u32::from(unsafe { (at as *const u8).read_volatile() });
                let after = want.load(Ordering::SeqCst);
                if before == after && before != 0 && seen != before {
                    stale.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    check!(stale.load(Ordering::SeqCst) == 0);
    let _ = paging::unmap(paging::system_root(), at);
    crate::mm::tlb::flush(at, 1);
    crate::mm::region::SYSTEM.release(at, 1);
    frames.into_iter().for_each(physical::free);
}

fn affinities() {
    let count = call!(affinity::KeQueryActiveProcessorCountEx(0xFFFF));
    check!(count == ke::cpu_count());
    for round in 0..3 * count {
        let number = (round * 5 + 1) % count;
        let wanted = [1u64 << number, 0];
        let mut previous = GroupAffinity::default();
        call!(affinity::KeSetSystemGroupAffinityThread(
            wanted.as_ptr().cast(),
            &raw mut previous
        ));
        check!(call!(affinity::KeGetCurrentProcessorNumberEx(ptr::null_mut())) == number);
        let mut processor = MaybeUninit::<ProcessorNumber>::uninit();
        check!(
            call!(affinity::KeGetProcessorNumberFromIndex(
                number,
                processor.as_mut_ptr()
            )) == 0
        );
        check!(call!(affinity::KeGetProcessorIndexFromNumber(processor.as_ptr())) == number);
        // SAFETY: every processor has the register.
        check!(unsafe { instr::rdmsr(0xC000_0080) } & 0xD01 == 0xD01);
        call!(affinity::KeRevertToUserGroupAffinityThread(
            &raw const previous
        ));
    }
    check!(thread::current().affinity.get() == thread::all_cpus());
}

unsafe extern "C" fn count_dpc(
    _: *mut c_void,
    context: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
) {
    check!(irql::current() == 2);
    check!(a as usize + 1 == b as usize);
    // SAFETY: the counter that the test gave.
    unsafe { &*context.cast::<AtomicU64>() }
        .fetch_add(1 << (8 * ke::current_cpu()), Ordering::AcqRel);
}

fn dpcs() {
    let count = AtomicU64::new(0);
    let context = ptr::from_ref(&count).cast_mut().cast::<c_void>();
    let mut all = [const { dpc::Dpc::new() }; 8];
    let used = ke::cpu_count().min(8) as usize;
    for (number, dpc) in all.iter_mut().enumerate().take(used) {
        let dpc = ptr::from_mut(dpc).cast::<c_void>();
        call!(dpc::KeInitializeDpc(
            dpc,
            count_dpc as *const () as *mut c_void,
            context
        ));
        call!(dpc::KeSetTargetProcessorDpc(dpc, number as i8));
    }
    for round in 0..20 {
        for dpc in all.iter_mut().take(used) {
            let dpc = ptr::from_mut(dpc).cast::<c_void>();
            let queued = call!(dpc::KeInsertQueueDpc(
                dpc,
                7 as *mut c_void,
                8 as *mut c_void
            ));
            check!(queued == 1);
        }
        call!(dpc::KeFlushQueuedDpcs());
        let expected = (0..used).fold(0u64, |sum, number| sum + ((round + 1) << (8 * number)));
        check!(count.load(Ordering::Acquire) == expected);
    }
    // At DISPATCH_LEVEL a DPC waits; inserted twice it stands once; it can be taken back.
    let dpc = ptr::from_mut(&mut all[0]).cast::<c_void>();
    call!(dpc::KeInitializeDpc(
        dpc,
        count_dpc as *const () as *mut c_void,
        context
    ));
    let before = count.load(Ordering::Acquire);
    let old = call!(time::KeRaiseIrqlToDpcLevel());
    check!(
        call!(dpc::KeInsertQueueDpc(
            dpc,
            7 as *mut c_void,
            8 as *mut c_void
        )) == 1
    );
    check!(
        call!(dpc::KeInsertQueueDpc(
            dpc,
            7 as *mut c_void,
            8 as *mut c_void
        )) == 0
    );
    clock::stall(50);
    check!(count.load(Ordering::Acquire) == before);
    check!(call!(dpc::KeRemoveQueueDpc(dpc)) == 1);
    check!(call!(dpc::KeRemoveQueueDpc(dpc)) == 0);
    call!(time::KeLowerIrql(old));
    clock::stall(50);
    check!(count.load(Ordering::Acquire) == before);
}

/// All processors meet at a barrier, one of them is told so.
fn generic_calls() {
    static WINNERS: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn here(
        _: *mut c_void,
        context: *mut c_void,
        done: *mut c_void,
        barrier: *mut c_void,
    ) {
        check!(irql::current() == 2 && context as usize == 5);
        SEEN.fetch_or(1 << ke::current_cpu(), Ordering::AcqRel);
        let winner = call!(dpc::KeSignalCallDpcSynchronize(barrier));
        check!(SEEN.load(Ordering::Acquire) as u64 == thread::all_cpus());
        WINNERS.fetch_add(u32::from(winner), Ordering::AcqRel);
        call!(dpc::KeSignalCallDpcSynchronize(barrier));
        call!(dpc::KeSignalCallDpcDone(done));
    }
    for round in 1..=20 {
        SEEN.store(0, Ordering::Release);
        call!(dpc::KeGenericCallDpc(
            here as *const () as *mut c_void,
            5 as *mut c_void
        ));
        check!(WINNERS.load(Ordering::Acquire) == round);
    }
    let mut context = [0u128; 80];
    let capture = typed!(
        crate::hal::entry::RtlCaptureContext,
        unsafe extern "C" fn(*mut u128)
    );
    call!(capture(context.as_mut_ptr()));
    let rsp = (context[9] >> 64) as usize;
    check!(rsp.abs_diff(instr::stack_pointer()) < 0x1000);
}

extern "C" fn count_call(argument: usize) -> usize {
    check!(irql::current() == irql::IPI_LEVEL);
    SEEN.fetch_or(1 << ke::current_cpu(), Ordering::AcqRel);
    argument + 1
}

fn ipis() {
    for _ in 0..50 {
        SEEN.store(0, Ordering::Release);
        check!(call!(ipi::KeIpiGenericCall(count_call, 41)) == 42);
        check!(SEEN.load(Ordering::Acquire) as u64 == thread::all_cpus());
    }
    // All processors start such calls and shoot-downs at once.
    on_all(&|_| {
        for _ in 0..30 {
            call!(ipi::KeIpiGenericCall(count_call, 0));
            crate::mm::tlb::flush(crate::mm::SYSTEM_BASE, 1);
        }
    });
}

static LOCK: AtomicUsize = AtomicUsize::new(0);

fn waits() {
    // Two threads hand a synchronization event to each other.
    static PING: Event = Event::new();
    static PONG: Event = Event::new();
    for event in [&PING, &PONG] {
        call!(event::KeInitializeEvent(
            ptr::from_ref(event).cast_mut().cast(),
            1,
            0
        ));
    }
    if ke::cpu_count() > 1 {
        on_all(&|number| match number {
            0 => {
                for _ in 0..100 {
                    PING.set(1);
                    PONG.wait();
                }
            }
            1 => {
                for _ in 0..100 {
                    PING.wait();
                    PONG.set(1);
                }
            }
            _ => {}
        });
    }
    // Timeouts and multiple objects.
    let objects = [
        ptr::from_ref(&PING).cast_mut().cast::<c_void>(),
        ptr::from_ref(&PONG).cast_mut().cast(),
    ];
    let mut timeout = -20_000i64;
    let wait_for = |wait_type: i32, timeout: *mut i64| {
        let objects = objects.as_ptr().cast_mut();
        call!(wait::KeWaitForMultipleObjects(
            2,
            objects,
            wait_type,
            0,
            0,
            0,
            timeout,
            ptr::null_mut()
        ))
    };
    let from = clock::interrupt_time();
    check!(wait_for(1, &raw mut timeout) == 0x102);
    check!(clock::interrupt_time() - from >= 20_000);
    PONG.set(0);
    check!(wait_for(0, &raw mut timeout) == 0x102);
    check!(wait_for(1, &raw mut timeout) == 1);
    PING.set(0);
    PONG.set(0);
    check!(wait_for(0, &raw mut timeout) == 0);
    check!(PING.header.signal.get() == 0 && PONG.header.signal.get() == 0);
    let mut zero = 0;
    check!(wait_for(1, &raw mut zero) == 0x102);
}

/// Mutex, semaphore, fast mutex and spin lock guard a plain counter.
fn locks() {
    let mut storage = [[0u64; 16]; 3];
    let [mutant, count, fast] = &mut storage;
    let (mutant, count, fast) = (
        mutant.as_mut_ptr() as usize,
        count.as_mut_ptr() as usize,
        fast.as_mut_ptr() as usize,
    );
    call!(mutex::KeInitializeMutex(mutant as *mut c_void, 0));
    call!(semaphore::KeInitializeSemaphore(count as *mut c_void, 1, 1));
    call!(mutex::ExInitializeFastMutex(fast as *mut c_void));
    let values = [const { AtomicU64::new(0) }; 4];
    let step = |value: &AtomicU64| {
        let now = value.load(Ordering::Relaxed);
        instr::pause();
        value.store(now + 1, Ordering::Relaxed);
    };
    on_all(&|_| {
        for _ in 0..50 {
            let status = call!(wait::KeWaitForSingleObject(
                mutant as *mut c_void,
                0,
                0,
                0,
                ptr::null_mut()
            ));
            check!(status == 0);
            step(&values[0]);
            call!(mutex::KeReleaseMutex(mutant as *mut c_void, 0));
            call!(wait::KeWaitForSingleObject(
                count as *mut c_void,
                0,
                0,
                0,
                ptr::null_mut()
            ));
            step(&values[1]);
            call!(semaphore::KeReleaseSemaphore(count as *mut c_void, 0, 1, 0));
            call!(mutex::ExAcquireFastMutex(fast as *mut c_void));
            step(&values[2]);
            call!(mutex::ExReleaseFastMutex(fast as *mut c_void));
            let old = call!(spinlock_exports::KeAcquireSpinLockRaiseToDpc(LOCK.as_ptr()));
            step(&values[3]);
            call!(spinlock_exports::KeReleaseSpinLock(LOCK.as_ptr(), old));
        }
    });
    for value in &values {
        check!(value.load(Ordering::Relaxed) == 50 * u64::from(ke::cpu_count()));
    }
}

fn timers() {
    unsafe extern "C" fn tick(
        _: *mut c_void,
        context: *mut c_void,
        _: *mut c_void,
        _: *mut c_void,
    ) {
        // SAFETY: the counter that the test gave.
        unsafe { &*context.cast::<AtomicU64>() }.fetch_add(1, Ordering::AcqRel);
    }
    let count = AtomicU64::new(0);
    let context = ptr::from_ref(&count).cast_mut().cast::<c_void>();
    let mut dpc = dpc::Dpc::new();
    let dpc = ptr::from_mut(&mut dpc).cast::<c_void>();
    call!(dpc::KeInitializeDpc(
        dpc,
        tick as *const () as *mut c_void,
        context
    ));
    let mut object = timer::Timer::new();
    let object = ptr::from_mut(&mut object).cast::<c_void>();
    call!(timer::KeInitializeTimerEx(object, 1));
    check!(call!(timer::KeSetTimerEx(object, -30_000, 2, dpc)) == 0);
    for _ in 0..5 {
        check!(
            call!(wait::KeWaitForSingleObject(
                object,
                0,
                0,
                0,
                ptr::null_mut()
            )) == 0
        );
    }
    check!(call!(timer::KeCancelTimer(object)) == 1);
    check!(call!(timer::KeCancelTimer(object)) == 0);
    call!(dpc::KeFlushQueuedDpcs());
    let fired = count.load(Ordering::Acquire);
    check!((5..9).contains(&fired));
    wait::sleep(60_000);
    check!(count.load(Ordering::Acquire) == fired);
    let mut interval = -50_000i64;
    let from = call!(time::KeQueryInterruptTime());
    check!(call!(wait::KeDelayExecutionThread(0, 0, &raw mut interval)) == 0);
    let passed = call!(time::KeQueryInterruptTime()) - from;
    check!((50_000..500_000).contains(&passed));
}

fn threads() {
    // Twice as many spinning threads as processors share them, and all make progress.
    static PROGRESS: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicU32 = AtomicU32::new(0);
    extern "C" fn spin(_: usize) {
        let slot = NEXT.fetch_add(1, Ordering::AcqRel) as usize;
        while STOP.load(Ordering::Acquire) == 0 {
            PROGRESS[slot].fetch_add(1, Ordering::Relaxed);
        }
    }
    let create = typed!(
        ps::exports::PsCreateSystemThread,
        unsafe extern "C" fn(
            *mut usize,
            u32,
            *mut c_void,
            *mut c_void,
            *mut c_void,
            extern "C" fn(usize),
            usize,
        ) -> i32
    );
    let number = 2 * ke::cpu_count() as usize;
    let mut handle = 0;
    let none = ptr::null_mut();
    for _ in 0..number {
        check!(
            call!(create(
                &raw mut handle,
                0x1F_FFFF,
                none,
                none,
                none,
                spin,
                0
            )) == 0
        );
    }
    wait::sleep(600_000);
    STOP.store(1, Ordering::Release);
    wait::sleep(100_000);
    check!(NEXT.load(Ordering::Acquire) as usize == number);
    for slot in PROGRESS.iter().take(number) {
        check!(slot.load(Ordering::Relaxed) > 100);
    }
}

fn extended_state() {
    // Each thread keeps its own pattern in XMM6-15 over switches and interrupts.
    on_all(&|number| {
        let seed = 0x1111_1111_1111_1111 * (u64::from(number) + 1);
        for _ in 0..20 {
            check!(instr::xmm_pattern_survives(seed, 200_000));
            call!(time::ZwYieldExecution());
        }
    });
    let mut save = [0u64; 6];
    let save = save.as_mut_ptr().cast::<c_void>();
    check!(call!(extended::KeSaveExtendedProcessorState(7, save)) == 0);
    call!(extended::KeRestoreExtendedProcessorState(save));
}

fn nmis() {
    static CLAIMED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn claim(_: *mut c_void, _: u8) -> u8 {
        CLAIMED.fetch_add(1, Ordering::AcqRel);
        1
    }
    let handle = call!(nmi::KeRegisterNmiCallback(
        claim as *const () as *mut c_void,
        ptr::null_mut()
    ));
    check!(!handle.is_null());
    let unclaimed = nmi::unclaimed();
    for round in 0..20u64 {
        for number in 0..ke::cpu_count() {
            crate::hal::apic::send_nmi(cpu::of(number as usize).apic_id.load(Ordering::Acquire));
        }
        let all = (round + 1) * u64::from(ke::cpu_count());
        for _ in 0..1000 {
            if CLAIMED.load(Ordering::Acquire) == all {
                break;
            }
            clock::stall(10);
        }
        check!(CLAIMED.load(Ordering::Acquire) == all);
    }
    check!(nmi::unclaimed() == unclaimed);
    check!(call!(nmi::KeDeregisterNmiCallback(handle)) == 0);
}

/// A processor is started anew under a thread that does not mind, and works again.
fn restarts() {
    extern "C" fn sacrifice(number: usize) {
        call!(affinity::KeSetSystemAffinityThreadEx(1 << number));
        irql::raise(irql::CLOCK_LEVEL);
        SEEN.store(1, Ordering::Release);
        loop {
            instr::pause();
        }
    }
    let last = ke::cpu_count() - 1;
    if last == 0 {
        return;
    }
    for _ in 0..3 {
        SEEN.store(0, Ordering::Release);
        let thread =
            thread::create(ps::process::system(), sacrifice, last as usize).expect("memory");
        thread::start(thread);
        while SEEN.load(Ordering::Acquire) == 0 {
            wait::sleep(10_000);
        }
        call!(affinity::KeSetSystemAffinityThreadEx(1));
        clock::stall(20);
        check!(crate::hal::processors::restart(last));
        call!(affinity::KeRevertToUserAffinityThread());
        on_all(&|_| clock::stall(10));
        check!(call!(ipi::KeIpiGenericCall(count_call, 1)) == 2);
    }
}

fn ring3() {
    let run =
        |name, argument| ps::user::start(name, argument).and_then(|id| ps::user::wait(id).ok_or(0));
    check!(run("hello", 0) == Ok(0));
    check!(run("compute", 100) == Ok(0));
    check!(run("jit", 100) == Ok(0));
    check!(run("syscalls", 100) == Ok(0));
    check!(run("nobody", 0) == Err(0xC000_0034_u32 as i32));
    check!(run("fault", 0) == Ok(0xC000_0005));
    check!(run("fault", 1) == Ok(0xC000_0005));
    check!(run("fault", 2) == Ok(0xC000_0096));
    check!(run("fault", 3) == Ok(0xC000_0005));
    // Many at once, endless, ended from outside.
    let names = ["compute", "jit", "syscalls", "compute", "jit", "idle"];
    let ids = names.map(|name| ps::user::start(name, 0).unwrap_or(0));
    wait::sleep(1_000_000);
    for (id, name) in ids.into_iter().zip(names) {
        check!(name == "idle" || ps::user::progress(id).is_some_and(|progress| progress > 0));
    }
    for id in ids {
        check!(ps::user::stop(id) == Some(1));
    }
}
