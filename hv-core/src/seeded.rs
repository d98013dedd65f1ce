//! Planted faults: proof that the tests can fail.
//!
//! A build with the feature `seeded-faults` can be told, at its start, to commit
//! one of the mistakes below. For each there is a test that must then fail
//! (`docs/src/seeded-faults.md`). Without the feature [`is`] is the constant
//! `false` and nothing of this is in the product.
//!
//! The number lies in the driver image's data, of which root mode has its own
//! copy: it is planted before the start and stays for as long as root mode runs.

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A mistake that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Planted {
            $($(#[$doc])* $name = $number,)*
        }

        /// Every mistake with its name and number.
        pub const ALL: &[(&str, u8)] = &[$((stringify!($name), $number),)*];
    };
}

faults! {
    /// An event whose delivery an exit interrupted is not delivered again.
    DropReinjection = 1,
    /// An exception is delivered again without its error code.
    DropErrorCode = 2,
    /// An NMI of the guest's own is forgotten.
    LoseGuestNmi = 3,
    /// An NMI of the guest's own is delivered twice.
    InventNmi = 4,
    /// A kick is passed on to the guest as well.
    PassKick = 5,
    /// The instruction pointer moves by two, whatever the instruction's length.
    AdvanceByTwo = 6,
    /// RDMSR of an MSR that does not exist reads 0 instead of faulting.
    SwallowGp = 7,
    /// RDMSR that faults changes EDX:EAX.
    ClobberOnGp = 8,
    /// CPUID shows VMX.
    ShowVmx = 9,
    /// CPUID shows OSXSAVE as root mode has it.
    FrozenOsxsave = 10,
    /// XSETBV is skipped.
    SkipXsetbv = 11,
    /// XMM3 is not restored.
    ForgetXmm3 = 12,
    /// MXCSR is not restored.
    ForgetMxcsr = 13,
    /// The GDT's limit is FFFFH after leaving.
    LimitFfff = 14,
    /// DR7 is not restored on leaving.
    ForgetDr7 = 15,
    /// CR4.VMXE stays set on leaving.
    KeepVmxe = 16,
    /// The GS base is not restored on leaving.
    ForgetGsBase = 17,
    /// A revocation does not wait for the other cores.
    SkipAcknowledge = 18,
    /// Execution is granted while the right to write is still there.
    KeepWrite = 19,
    /// One private page stays mapped for the guest.
    LeaveFrameMapped = 20,
    /// A write of an instruction to its own page is not stepped.
    NeverStep = 21,
    /// A stepped write is not compared.
    SkipCompare = 22,
    /// The step's exit stays armed.
    StepForEver = 23,
    /// User-mode fetches are judged like the kernel's.
    JudgeUser = 24,
    /// INIT is ignored.
    IgnoreInit = 25,
    /// SIPI starts the core at the next page.
    SipiOffByOne = 26,
    /// Faulting MSR accesses outside the bitmaps repeat for ever.
    NeverAdvance = 27,
    /// A write to a memory-type range register does not reach the nested tables.
    StaleTypes = 28,
    /// The nested tables cache device memory.
    WrongTypes = 29,
    /// One block of memory is not given back.
    LeakBlock = 30,
    /// A failed launch leaves the first core a guest. It fails as [`Self::LaunchStep`]
    /// says, with the same operands.
    HalfRollback = 31,
    /// Hypercalls are answered without the secret.
    OpenHypercalls = 32,
    /// Faults that are raised for the guest have RFLAGS.RF clear.
    ForgetResumeFlag = 33,
    /// Addresses that are not mapped yet stay unmapped.
    NeverFill = 34,
    /// Clearing CR0.NE faults.
    FaultOnNe = 35,
    /// CR4.VMXE is visible.
    ShowVmxe = 36,
    /// `IA32_FEATURE_CONTROL` reads as it is.
    ShowFeatureControl = 37,
    /// Setting CR4.VMXE, or EFER.SVME on AMD, is allowed.
    AllowVmxe = 38,
    /// Blocking by NMI is not restored when IRET exits.
    ForgetIretBlocking = 39,
    /// An instruction that was answered leaves blocking by STI in place.
    KeepStiBlocking = 40,
    /// A single step of the guest's own is lost at an answered instruction.
    ForgetSingleStep = 41,
    /// VMX instructions of the guest are skipped.
    SkipVmxInstructions = 42,
    /// A fetch is granted without asking whose code it is.
    SkipDecision = 43,
    /// A launch fails: step in bits 8 to 15 (see [`launch_fails`]), core in bits
    /// 16 to 23.
    LaunchStep = 44,
    /// An allocation of the start fails: its number in bits 8 to 23.
    Allocation = 45,
    /// A core answers kicks late.
    SlowCore = 46,
    /// The last core cannot be reached when it is to leave.
    CannotLeave = 47,
    /// The other cores are not told of a revocation.
    SkipKick = 48,
}

#[cfg(feature = "seeded-faults")]
static PLANTED: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Plants a fault: its number in bits 0 to 7, its operands above; 0 for none.
#[cfg(feature = "seeded-faults")]
pub fn plant(number: u32) {
    PLANTED.store(number, core::sync::atomic::Ordering::Release);
}

#[cfg(feature = "seeded-faults")]
fn planted() -> u32 {
    PLANTED.load(core::sync::atomic::Ordering::Relaxed)
}

/// Whether this mistake is to be made.
#[cfg(feature = "seeded-faults")]
#[must_use]
pub fn is(fault: Planted) -> bool {
    planted() & 0xFF == fault as u32
}

/// Whether this mistake is to be made: never, in the product.
#[cfg(not(feature = "seeded-faults"))]
#[inline]
#[must_use]
pub const fn is(_: Planted) -> bool {
    false
}

/// Whether the launch of `core` is to fail at `step`: 0 VMXON, 1 VMCLEAR, 2
/// VMPTRLD, 3 VMLAUNCH, 4 the first hypercall, 5 reaching the core.
#[must_use]
#[cfg_attr(
    not(feature = "seeded-faults"),
    expect(clippy::missing_const_for_fn, reason = "it is none with the feature")
)]
pub fn launch_fails(step: u32, core: u32) -> bool {
    #[cfg(feature = "seeded-faults")]
    let fails = (is(Planted::LaunchStep) || is(Planted::HalfRollback))
        && planted() >> 8 == step | core << 8;
    #[cfg(not(feature = "seeded-faults"))]
    let fails = {
        let _ = (step, core);
        false
    };
    fails
}

/// Whether the start's allocation of this number, counted from 0, is to fail.
#[must_use]
#[cfg_attr(
    not(feature = "seeded-faults"),
    expect(clippy::missing_const_for_fn, reason = "it is none with the feature")
)]
pub fn allocation_fails(number: usize) -> bool {
    #[cfg(feature = "seeded-faults")]
    let fails = is(Planted::Allocation) && (planted() >> 8 & 0xFFFF) as usize == number;
    #[cfg(not(feature = "seeded-faults"))]
    let fails = {
        let _ = number;
        false
    };
    fails
}
