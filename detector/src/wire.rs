//! What driver and command-line tool say to each other.
//!
//! IOCTL codes and the structures behind them, defined once. Every structure is
//! plain data of fixed size without padding, begins with a [`Header`] (magic,
//! version, size) and is zeroed before it is filled, so that no byte of kernel
//! memory leaks. All codes are `METHOD_BUFFERED`: the driver copies a request out
//! of the system buffer with [`request`] before it writes a reply there.
//!
//! None of the codes reads or writes memory, MSRs or ports for the caller, and a
//! test freezes the list. Either side may be older or hostile: [`request`] and
//! [`reply`] refuse what does not fit, and raw numbers stay numbers until asked.

use crate::event::{Kind, Severity};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device's name for `CreateFile`.
pub const DEVICE_PATH: &str = r"\\.\hvdetect";

/// "HVDT", little-endian: the first word of every structure.
pub const MAGIC: u32 = 0x5444_5648;

/// Version of this page's structures and codes.
pub const PROTOCOL: u16 = 2;

/// Our device type; Microsoft keeps those below 0x8000.
pub const DEVICE_TYPE: u32 = 0x8D48;

const FILE_READ_DATA: u32 = 1;
const FILE_WRITE_DATA: u32 = 2;

/// An I/O control code with `METHOD_BUFFERED` (Windows driver documentation,
/// "Defining I/O Control Codes").
#[must_use]
pub const fn ctl_code(device_type: u32, function: u32, access: u32) -> u32 {
    const METHOD_BUFFERED: u32 = 0;
    (device_type << 16) | (access << 14) | (function << 2) | METHOD_BUFFERED
}

/// In: nothing. Out: [`VersionReply`].
pub const VERSION: u32 = ctl_code(DEVICE_TYPE, 0x800, FILE_READ_DATA);
/// In: [`StartRequest`]. Out: [`StartReply`].
pub const START: u32 = ctl_code(DEVICE_TYPE, 0x801, FILE_READ_DATA | FILE_WRITE_DATA);
/// In: [`StopRequest`]. Out: [`StopReply`].
pub const STOP: u32 = ctl_code(DEVICE_TYPE, 0x802, FILE_READ_DATA | FILE_WRITE_DATA);
/// In: nothing. Out: [`StatusReply`].
pub const STATUS: u32 = ctl_code(DEVICE_TYPE, 0x803, FILE_READ_DATA);
/// In: [`WaitRequest`]. Out: [`WaitReply`], then its findings. Waits until there
/// is a finding with a higher number than asked, or the request is cancelled.
pub const WAIT: u32 = ctl_code(DEVICE_TYPE, 0x804, FILE_READ_DATA);
/// In: [`EvidenceRequest`]. Out: [`EvidenceReply`].
pub const EVIDENCE: u32 = ctl_code(DEVICE_TYPE, 0x805, FILE_READ_DATA);

/// Every code that the driver answers, with its name.
pub const CODES: [(u32, &str); 6] = [
    (VERSION, "version"),
    (START, "start"),
    (STOP, "stop"),
    (STATUS, "status"),
    (WAIT, "wait"),
    (EVIDENCE, "evidence"),
];

/// Begins every structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`PROTOCOL`] of the sender.
    pub version: u16,
    /// Zero.
    pub reserved: u16,
    /// Bytes of the structure that begins here, without what may follow it.
    pub size: u32,
    /// Zero.
    pub reserved2: u32,
}

/// A structure that crosses the device's border.
pub trait Message: FromBytes + IntoBytes + KnownLayout + Immutable {
    /// Its first field.
    fn header(&self) -> &Header;
    /// Its first field.
    fn header_mut(&mut self) -> &mut Header;

    /// Zeroed, with a correct header.
    #[must_use]
    fn zeroed() -> Self
    where
        Self: Sized,
    {
        let mut message = Self::new_zeroed();
        *message.header_mut() = header_of::<Self>();
        message
    }
}

/// The header that a message of this type begins with.
#[must_use]
pub const fn header_of<T: Message>() -> Header {
    Header {
        magic: MAGIC,
        version: PROTOCOL,
        reserved: 0,
        // Every message is a few KiB; the test of the layouts shows it.
        #[allow(clippy::cast_possible_truncation)]
        size: size_of::<T>() as u32,
        reserved2: 0,
    }
}

/// Why bytes are not the message that they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer or more bytes than the message has.
    Length,
    /// The first word is wrong.
    Magic,
    /// Another protocol version.
    Version,
    /// The size field differs from the message's size.
    Size,
    /// A flag that is not defined, or a reserved field that is not zero.
    Flags,
}

fn check<T: Message>(message: T) -> Result<T, Malformed> {
    let header = *message.header();
    if header.magic != MAGIC {
        Err(Malformed::Magic)
    } else if header.version != PROTOCOL {
        Err(Malformed::Version)
    } else if usize::try_from(header.size) != Ok(size_of::<T>()) {
        Err(Malformed::Size)
    } else if header.reserved != 0 || header.reserved2 != 0 {
        Err(Malformed::Flags)
    } else {
        Ok(message)
    }
}

/// A request, copied out of the caller's buffer and checked; driver's side.
///
/// # Errors
/// [`Malformed`]; also if a flag is set that this version does not know.
pub fn request<T: Request>(bytes: &[u8]) -> Result<T, Malformed> {
    let message = check(T::read_from_bytes(bytes).map_err(|_| Malformed::Length)?)?;
    if message.known() {
        Ok(message)
    } else {
        Err(Malformed::Flags)
    }
}

/// A reply's fixed part and what follows it; caller's side.
///
/// # Errors
/// [`Malformed`].
pub fn reply<T: Message>(bytes: &[u8]) -> Result<(T, &[u8]), Malformed> {
    let (message, rest) = T::read_from_prefix(bytes).map_err(|_| Malformed::Length)?;
    Ok((check(message)?, rest))
}

/// A message that the caller sends.
pub trait Request: Message {
    /// No unknown flag is set and reserved fields are zero.
    fn known(&self) -> bool;
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name {
            /// Magic, version, size.
            pub header: Header,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Message for $name {
            fn header(&self) -> &Header { &self.header }
            fn header_mut(&mut self) -> &mut Header { &mut self.header }
        }
    )*};
}

messages! {
    /// Reply to [`VERSION`].
    VersionReply {
        /// Highest [`PROTOCOL`] that the driver speaks.
        protocol: u16,
        /// The driver's version: major, minor, patch.
        driver: [u16; 3],
    }

    /// Request of [`START`].
    StartRequest {
        /// Bits of [`StartFlags`].
        flags: u64,
    }

    /// Reply to [`START`].
    StartReply {
        /// Number of a [`StartError`], 0 if monitoring has begun.
        error: u32,
        /// The core that failed, `u32::MAX` if none.
        core: u32,
        /// More about the error: the control's MSR, the instruction error.
        detail: u64,
    }

    /// Request of [`STOP`].
    StopRequest {
        /// Zero.
        flags: u64,
    }

    /// Reply to [`STOP`].
    StopReply {
        /// Number of a [`StartError`], 0 if monitoring has ended.
        error: u32,
        /// The core that failed, `u32::MAX` if none.
        core: u32,
        /// More about the error.
        detail: u64,
    }

    /// Reply to [`STATUS`].
    StatusReply {
        /// Number of a [`State`].
        state: u32,
        /// Number of a [`Vendor`].
        vendor: u32,
        /// Cores monitored; while stopped, cores present.
        cores: u32,
        /// Physical-address width, bits.
        address_bits: u32,
        /// Bits of [`Features`]: what the processor offers and is used.
        features: u64,
        /// Bits of [`Gaps`]: what is not covered. None: coverage is full.
        gaps: u64,
        /// Exits of all cores by basic exit reason (Intel SDM, "Basic Exit
        /// Reasons"); on AMD see [`exit_slot`].
        exits: [u64; 80],
        /// Exits whose reason has no slot.
        exits_other: u64,
        /// Physical pages of 4 KiB by state.
        pages: Pages,
        /// Nested page tables in use (pages of 4 KiB).
        tables: u64,
        /// Nested page tables reserved (pages of 4 KiB).
        tables_reserved: u64,
        /// Bytes of all nested tables.
        table_bytes: u64,
        /// Bytes that each core has for itself.
        core_bytes: u64,
        /// Bytes that root mode and driver share (rings, evidence, snapshots).
        shared_bytes: u64,
        /// Invalidations of nested translations (INVEPT; TLB control).
        invalidations: u64,
        /// Kicks sent to other cores.
        kicks: u64,
        /// Pages flipped between writable and executable.
        flips: u64,
        /// Instructions stepped on a private path.
        steps: u64,
        /// Modules in the registry.
        modules: u32,
        /// Generation of the registry.
        generation: u32,
        /// 100 ns since 1601 (UTC) when monitoring began; 0 while stopped.
        started: u64,
        /// Bits of [`Notes`]: what the start changed about the machine.
        notes: u64,
        /// What became of all events and findings.
        accounts: Accounts,
    }

    /// Request of [`WAIT`].
    WaitRequest {
        /// Findings with a higher number than this are wanted.
        after_seq: u64,
        /// At most so many in one reply; 0: as many as fit.
        max: u32,
        /// Bits of [`WaitFlags`].
        flags: u32,
    }

    /// Reply to [`WAIT`]; `count` [`Finding`]s follow.
    WaitReply {
        /// Findings that follow.
        count: u32,
        /// Number of a [`State`] when the reply was made.
        state: u32,
        /// Findings after the last of this reply that wait already.
        remaining: u64,
        /// Lowest number still queued, 0 if none: lower ones are gone.
        oldest_seq: u64,
        /// What became of all events and findings up to this reply.
        accounts: Accounts,
    }

    /// Request of [`EVIDENCE`].
    EvidenceRequest {
        /// Number of the finding.
        seq: u64,
    }

    /// Reply to [`EVIDENCE`].
    EvidenceReply {
        /// Number of the finding.
        seq: u64,
        /// 1 if the page follows, 0 if it was never kept or has been dropped.
        available: u32,
        /// Zero.
        reserved: u32,
        /// The page as it was.
        page: [u8; 4096],
    }
}

impl Request for StartRequest {
    fn known(&self) -> bool {
        // A build for the lab takes the number of a planted mistake above.
        let flags = if cfg!(feature = "seeded-faults") {
            self.flags & 0xFFFF_FFFF
        } else {
            self.flags
        };
        StartFlags::from_bits(flags).is_some()
    }
}
impl Request for StopRequest {
    fn known(&self) -> bool {
        self.flags == 0
    }
}
impl Request for WaitRequest {
    fn known(&self) -> bool {
        WaitFlags::from_bits(self.flags).is_some()
    }
}
impl Request for EvidenceRequest {
    fn known(&self) -> bool {
        true
    }
}

bitflags::bitflags! {
    /// How to start. The pretences exist so that the lab can test every path on
    /// a machine that has everything.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct StartFlags: u64 {
        /// Pretend that there is no monitor trap flag.
        const NO_MTF = 1 << 0;
        /// Pretend that there is no mode-based execute control, and on AMD no guest
        /// mode execute trap, which can be switched off with this.
        const NO_MBEC = 1 << 1;
        /// Pretend that the next instruction's address is not saved (AMD).
        const NO_NEXT_RIP = 1 << 2;
        /// Pretend that all translations can be flushed together only (AMD).
        const NO_FLUSH_BY_ASID = 1 << 3;
    }

    /// How to wait.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WaitFlags: u32 {
        /// Reply at once, with no finding if there is none.
        const NO_WAIT = 1 << 0;
        /// Only findings that no reader has had yet.
        const UNDELIVERED = 1 << 1;
        /// Look only: what is read still counts as undelivered.
        const PEEK = 1 << 2;
    }

    /// What the processor offers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u64 {
        /// Nested page tables (EPT, NPT).
        const NESTED_PAGING = 1 << 0;
        /// Nested leaves of 2 MiB.
        const LEAF_2M = 1 << 1;
        /// Nested leaves of 1 GiB.
        const LEAF_1G = 1 << 2;
        /// Separate execute rights for user and supervisor (MBEC, GMET).
        const MBEC = 1 << 3;
        /// Monitor trap flag.
        const MTF = 1 << 4;
        /// Tagged translations (VPID, ASID).
        const VPID = 1 << 5;
        /// Single-context invalidation (INVEPT single, flush by ASID).
        const INVEPT_SINGLE = 1 << 6;
        /// Accessed and dirty bits in nested tables.
        const ACCESSED_DIRTY = 1 << 7;
        /// Execute-only nested pages.
        const EXECUTE_ONLY = 1 << 8;
        /// Unrestricted guest.
        const UNRESTRICTED = 1 << 9;
        /// Preemption timer.
        const PREEMPTION_TIMER = 1 << 10;
        /// Virtual NMIs.
        const VIRTUAL_NMI = 1 << 11;
        /// The address of the next instruction is saved (nRIP save).
        const NEXT_RIP = 1 << 12;
        /// Decode assists.
        const DECODE_ASSISTS = 1 << 13;
    }

    /// What is not covered, and why.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Gaps: u64 {
        /// No mode-based execution (MBEC, GMET): pages that user mode executes get no
        /// verdict.
        const USER_PAGES = 1 << 0;
        /// Nested tables ran out; some pages keep both rights.
        const TABLES_EXHAUSTED = 1 << 1;
        /// Some pages change so often that they are exempt.
        const EXEMPT_PAGES = 1 << 2;
        /// A core is not monitored.
        const CORE_MISSING = 1 << 3;
        /// The module list is not complete.
        const REGISTRY_INCOMPLETE = 1 << 4;
    }
}

bitflags::bitflags! {
    /// What else is worth knowing.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Notes: u64 {
        /// The firmware had left IA32_FEATURE_CONTROL unlocked. VMXON needs it
        /// locked with VMX allowed, so the start did that; it stays so until the
        /// machine restarts.
        const FIRMWARE_LOCKED = 1 << 0;
        /// AMD's guest mode execute trap is in use ([`Features::MBEC`]). No emulator
        /// has it, so it is untested on hardware and off it;
        /// [`StartFlags::NO_MBEC`] starts without.
        const GMET_UNTESTED = 1 << 1;
    }
}

/// Physical pages of 4 KiB by state.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Pages {
    /// Writable, not executable by the kernel.
    pub writable: u64,
    /// Executable, not writable.
    pub executable: u64,
    /// Both, for one instruction on one core.
    pub stepping: u64,
    /// Both, given up and counted.
    pub exempt: u64,
    /// The hypervisor's own, shown to the guest as one dummy page.
    pub hidden: u64,
}

/// What became of everything that was seen. At any time `produced` is the sum of
/// `delivered`, `queued`, `merged` and the causes of a drop: `ring_full`,
/// `queue_full`, `rate_limited`, `stale`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Accounts {
    /// Events that root mode made, those that it could not store included.
    pub produced: u64,
    /// Findings given a number so far, so also the highest number.
    pub findings: u64,
    /// Findings handed to a reader at least once.
    pub delivered: u64,
    /// Findings that no reader has had yet.
    pub queued: u64,
    /// Events counted into a finding that existed already.
    pub merged: u64,
    /// Events lost because a core's ring was full.
    pub ring_full: u64,
    /// Events lost because too many findings waited for a reader.
    pub queue_full: u64,
    /// Events lost because too many new findings came at once.
    pub rate_limited: u64,
    /// Writes to the code of a module that had been unloaded, or whose page had
    /// moved, by then: the system at work on memory that it had freed.
    pub stale: u64,
    /// Findings whose page was not kept. Not a loss of the finding.
    pub no_evidence: u64,
}

impl Accounts {
    /// Whether nothing is missing.
    #[must_use]
    pub fn balance(&self) -> bool {
        let parts = [
            self.queued,
            self.merged,
            self.ring_full,
            self.queue_full,
            self.rate_limited,
            self.stale,
        ];
        let sum = parts
            .iter()
            .try_fold(self.delivered, |sum, part| sum.checked_add(*part));
        sum == Some(self.produced)
    }

    /// Events dropped, for whatever cause but [`Accounts::stale`], which loses
    /// nothing.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.ring_full
            .saturating_add(self.queue_full)
            .saturating_add(self.rate_limited)
    }
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $raw:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[$value_doc])* $value = $raw,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$value,)*];

            /// The value of a raw number, `None` for an unknown one.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Option<$name> {
                match raw { $($raw => Some($name::$value),)* _ => None }
            }
        }
    )*};
}

numbers! {
    /// What the driver does.
    State {
        /// Loaded; the machine is untouched.
        Stopped = 0,
        /// Launching on all cores.
        Starting = 1,
        /// Monitoring.
        Monitoring = 2,
        /// Leaving on all cores.
        Stopping = 3,
        /// A core could not leave; only a restart helps.
        Failed = 4,
    }

    /// Whose virtualization is used.
    Vendor {
        /// Neither.
        Unknown = 0,
        /// Intel VMX.
        Intel = 1,
        /// AMD SVM.
        Amd = 2,
    }

    /// Why monitoring did not start or stop. 0 is no error.
    StartError {
        /// CPUID shows a hypervisor already.
        HypervisorPresent = 1,
        /// The firmware locked virtualization off.
        VirtualizationLockedOff = 2,
        /// Neither VMX nor SVM.
        NoVirtualization = 3,
        /// No nested page tables.
        NoEpt = 4,
        /// Monitoring runs already.
        AlreadyStarted = 5,
        /// Monitoring does not run.
        NotStarted = 6,
        /// Another start or stop is under way.
        Busy = 7,
        /// No memory.
        NoMemory = 8,
        /// The processor requires a control that this version does not know.
        UnknownRequiredControl = 9,
        /// The processor lacks a control that is needed.
        MissingControl = 10,
        /// A core failed; all others were rolled back.
        CoreFailed = 11,
        /// FRED is enabled.
        Fred = 12,
        /// CR4.VMXE is set or a core is in VMX operation: somebody else uses it.
        VirtualizationInUse = 13,
        /// The MTRRs contradict each other.
        MemoryTypes = 14,
        /// More physical-address bits than the nested tables map.
        AddressWidth = 15,
        /// More cores than supported.
        TooManyCores = 16,
        /// The list of modules could not be had.
        NoModules = 17,
        /// VM entry was refused on a core.
        EntryFailed = 18,
        /// A core did not leave; nothing was freed.
        LeaveFailed = 19,
        /// This path is not made for this vendor yet.
        VendorUnsupported = 20,
        /// IA32_FEATURE_CONTROL differs between cores.
        UnequalFirmware = 21,
        /// No four-level walk of nested page tables.
        NoFourLevelWalk = 22,
        /// Nested page tables cannot be write-back.
        NoWriteBackTables = 23,
        /// No INVEPT of a single context.
        NoInvept = 24,
        /// Kernel shadow stacks are active.
        ShadowStacks = 25,
        /// Memory is encrypted for a guest (SEV).
        EncryptedMemory = 26,
        /// The memory map asks for more nested tables than were reserved.
        NoTables = 27,
        /// The driver's image could not be copied for root mode.
        ImageUnreadable = 28,
        /// A core could not be reached.
        CoreUnreachable = 29,
        /// The list of physical memory could not be read.
        MemoryMap = 30,
        /// SVM is switched off, but not locked (VM_CR).
        SwitchedOff = 31,
        /// SVM has no address-space identifier for a guest.
        TooFewAsids = 32,
    }
}

/// Slot of an AMD exit code in [`StatusReply::exits`]: 0x60 to 0xa7 are taken as
/// they are less 0x60, the codes 0x400 to 0x406 (NPF and later) follow, and the
/// last slot is that of all exceptions (0x40 to 0x5f); `None` has no slot.
#[must_use]
pub const fn exit_slot(exitcode: u64) -> Option<usize> {
    match exitcode {
        // The ranges are as wide as the slots.
        #[allow(clippy::cast_possible_truncation)]
        0x60..=0xa7 => Some((exitcode - 0x60) as usize),
        #[allow(clippy::cast_possible_truncation)]
        0x400..=0x406 => Some((exitcode - 0x400) as usize + 72),
        0x40..=0x5f => Some(79),
        _ => None,
    }
}

/// Room for a module's or an export's name.
pub const NAME_ROOM: usize = 64;

/// Bytes kept of a finding's old and new contents.
pub const WRITE_ROOM: usize = 64;

/// Image loads and unloads told with a finding.
pub const TIMELINE_ROOM: usize = 4;

/// An address with the names that belong to it. `module_length` 0: in no module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Place {
    /// The address (linear), 0 if unknown.
    pub address: u64,
    /// The module's base.
    pub base: u64,
    /// Distance from the module's base.
    pub offset: u32,
    /// Distance from the export.
    pub export_offset: u32,
    /// Bytes of `module` that are used.
    pub module_length: u8,
    /// Bytes of `section` that are used.
    pub section_length: u8,
    /// Bytes of `export` that are used.
    pub export_length: u8,
    /// 1 if this place says anything at all.
    pub present: u8,
    /// Zero.
    pub reserved: [u8; 4],
    /// Section name.
    pub section: [u8; 8],
    /// Module name.
    pub module: [u8; NAME_ROOM],
    /// Name of the nearest export before the address.
    pub export: [u8; NAME_ROOM],
}

impl Place {
    /// The module's name, `None` if the address is in none.
    #[must_use]
    pub fn module(&self) -> Option<&[u8]> {
        used(&self.module, self.module_length)
    }

    /// The section's name, `None` if the address is in none.
    #[must_use]
    pub fn section(&self) -> Option<&[u8]> {
        used(&self.section, self.section_length)
    }

    /// The nearest export's name, `None` if none is known.
    #[must_use]
    pub fn export(&self) -> Option<&[u8]> {
        used(&self.export, self.export_length)
    }
}

fn used(room: &[u8], length: u8) -> Option<&[u8]> {
    match usize::from(length) {
        0 => None,
        length => Some(room.get(..length).unwrap_or(room)),
    }
}

/// An image that was loaded or unloaded shortly before a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ImageChange {
    /// 100 ns since 1601 (UTC).
    pub time: u64,
    /// The image's base.
    pub base: u64,
    /// Bytes of the image.
    pub size: u32,
    /// 1 loaded, 2 unloaded, 0 no entry.
    pub change: u8,
    /// Bytes of `name` that are used.
    pub name_length: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// File name.
    pub name: [u8; NAME_ROOM],
}

impl ImageChange {
    /// [`ImageChange::change`] of a load.
    pub const LOADED: u8 = 1;
    /// [`ImageChange::change`] of an unload.
    pub const UNLOADED: u8 = 2;

    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        used(&self.name, self.name_length).unwrap_or(&[])
    }
}

bitflags::bitflags! {
    /// Which parts of a [`Finding`] are there.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FindingFlags: u32 {
        /// `gla`.
        const GLA = 1 << 0;
        /// `old`.
        const OLD = 1 << 1;
        /// `new`.
        const NEW = 1 << 2;
        /// `gprs`.
        const GPRS = 1 << 3;
        /// A page was kept when the finding was made; `sha256` is its hash.
        const EVIDENCE = 1 << 4;
        /// Seen by stepping one instruction.
        const STEPPED = 1 << 5;
        /// The core ran 64-bit code.
        const LONG_MODE = 1 << 6;
        /// Was so when monitoring began.
        const AT_START = 1 << 7;
        /// Of a known benign class.
        const BENIGN_CLASS = 1 << 8;
    }
}

/// One finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Finding {
    /// Its number, from 1.
    pub seq: u64,
    /// 100 ns since 1601 (UTC) of its first event.
    pub time: u64,
    /// Time-stamp counter of its first event.
    pub tsc: u64,
    /// How many events it stands for.
    pub count: u64,
    /// Number of a [`Kind`].
    pub kind: u16,
    /// Number of a [`Severity`].
    pub severity: u8,
    /// Current privilege level.
    pub cpl: u8,
    /// Index of the core.
    pub core: u32,
    /// Bits of [`FindingFlags`].
    pub flags: u32,
    /// Generation of the registry that gave the verdict.
    pub generation: u32,
    /// RIP.
    pub rip: u64,
    /// Faulting linear address, if [`FindingFlags::GLA`].
    pub gla: u64,
    /// Faulting guest-physical address.
    pub gpa: u64,
    /// CR3.
    pub cr3: u64,
    /// RSP.
    pub rsp: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Process identifier, 0 if unknown.
    pub process: u64,
    /// Exit qualification or EXITINFO1.
    pub qualification: u64,
    /// General-purpose registers in encoding order.
    pub gprs: [u64; 16],
    /// Whose code acted (by RIP).
    pub actor: Place,
    /// What was written to or executed.
    pub victim: Place,
    /// Where the actor returns to, as far as the stack tells.
    pub returns: Place,
    /// Offset of the first byte written within its page.
    pub write_offset: u32,
    /// Bytes written in all; `old` and `new` hold at most the first 64.
    pub write_length: u32,
    /// Bytes of `old` and `new` that are used.
    pub write_bytes: u32,
    /// Bytes of `code` that are used.
    pub code_bytes: u32,
    /// Instruction bytes at RIP.
    pub code: [u8; 16],
    /// Before.
    pub old: [u8; WRITE_ROOM],
    /// After.
    pub new: [u8; WRITE_ROOM],
    /// SHA-256 of the evidence page, if [`FindingFlags::EVIDENCE`].
    pub sha256: [u8; 32],
    /// Images loaded and unloaded shortly before, newest first.
    pub timeline: [ImageChange; TIMELINE_ROOM],
    /// The module that lay at the actor's or victim's address and was unloaded
    /// before, if the address is in none now; no change if there was none.
    pub earlier: ImageChange,
}

impl Finding {
    /// The kind, `None` if this version does not know it.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind)
    }

    /// The severity.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        Severity::from_raw(self.severity)
    }

    /// The flags, unknown bits kept.
    #[must_use]
    pub const fn flags(&self) -> FindingFlags {
        FindingFlags::from_bits_retain(self.flags)
    }

    /// The bytes before the write, `None` if not known.
    #[must_use]
    pub fn old(&self) -> Option<&[u8]> {
        let known = self.flags().contains(FindingFlags::OLD);
        known.then(|| self.old.get(..self.write_used()).unwrap_or(&self.old))
    }

    /// The bytes after the write, `None` if not known.
    #[must_use]
    pub fn new_bytes(&self) -> Option<&[u8]> {
        let known = self.flags().contains(FindingFlags::NEW);
        known.then(|| self.new.get(..self.write_used()).unwrap_or(&self.new))
    }

    fn write_used(&self) -> usize {
        usize::try_from(self.write_bytes).unwrap_or(WRITE_ROOM)
    }

    /// The instruction bytes at RIP.
    #[must_use]
    pub fn code(&self) -> &[u8] {
        let used = usize::try_from(self.code_bytes).unwrap_or(16);
        self.code.get(..used).unwrap_or(&self.code)
    }

    /// Image loads and unloads, newest first.
    pub fn timeline(&self) -> impl Iterator<Item = &ImageChange> {
        self.timeline.iter().filter(|c| c.change != 0)
    }

    /// The unloaded module that once lay at the address.
    #[must_use]
    pub fn earlier(&self) -> Option<&ImageChange> {
        Some(&self.earlier).filter(|c| c.change == ImageChange::UNLOADED)
    }
}

/// The findings that follow a [`WaitReply`].
///
/// # Errors
/// [`Malformed::Length`] if fewer bytes follow than `reply.count` says.
pub fn findings<'a>(
    reply: &WaitReply,
    rest: &'a [u8],
) -> Result<impl Iterator<Item = Finding> + use<'a>, Malformed> {
    let count = usize::try_from(reply.count).map_err(|_| Malformed::Length)?;
    let bytes = count.checked_mul(size_of::<Finding>());
    let bytes = bytes.and_then(|n| rest.get(..n)).ok_or(Malformed::Length)?;
    Ok(bytes
        .chunks_exact(size_of::<Finding>())
        .filter_map(|chunk| Finding::read_from_bytes(chunk).ok()))
}

/// Bytes of a WAIT reply with `count` findings.
#[must_use]
pub const fn wait_reply_bytes(count: usize) -> usize {
    size_of::<WaitReply>().saturating_add(count.saturating_mul(size_of::<Finding>()))
}

#[cfg(test)]
mod tests;
