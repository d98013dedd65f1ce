//! Exerciser: drives single instructions, events and registers through whatever
//! lies below, and tells what came of each.
//!
//! Nothing happens until it is asked through its device `\\.\exerciser`: one
//! buffered IOCTL, a command line in, lines of text out. A case of the lab runs
//! the same commands without the hypervisor, below it and after it, and compares
//! the lines. Entry and unload run at PASSIVE_LEVEL; so does a command, on the
//! processor that it names. One command at a time: a second one is refused.

#![no_std]

mod apic;
mod delivery;
mod events;
mod flood;
#[path = "../../harness.rs"]
mod harness;
mod instr;
mod patterns;
mod peers;
mod svm;
mod sweeps;
mod system;
#[path = "../../tables.rs"]
mod tables;
mod text;
mod trap;

use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use text::Text;
use wdk_standin::wdk_sys::{
    DEVICE_OBJECT, DO_BUFFERED_IO, FILE_DEVICE_UNKNOWN, IRP, IRP_MJ_CLEANUP, IRP_MJ_CLOSE,
    IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, NT_SUCCESS, NTSTATUS, PCUNICODE_STRING, PDEVICE_OBJECT,
    PDRIVER_OBJECT, STATUS_BUFFER_OVERFLOW, STATUS_DEVICE_BUSY, STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_PARAMETER, STATUS_SUCCESS, UNICODE_STRING,
    ntddk::{
        IoCreateDevice, IoCreateSymbolicLink, IoDeleteDevice, IoDeleteSymbolicLink,
        IofCompleteRequest, KeRevertToUserAffinityThreadEx, KeSetSystemAffinityThreadEx,
    },
};

/// `CTL_CODE(FILE_DEVICE_UNKNOWN, 0x800, METHOD_BUFFERED, FILE_ANY_ACCESS)`.
const COMMAND: u32 = 0x22_2000;

static DEVICE: AtomicPtr<DEVICE_OBJECT> = AtomicPtr::new(core::ptr::null_mut());
static BUSY: AtomicBool = AtomicBool::new(false);

const fn wide<const N: usize>(text: &[u8; N]) -> [u16; N] {
    let mut wide = [0; N];
    let mut at = 0;
    while at < N {
        wide[at] = text[at] as u16;
        at += 1;
    }
    wide
}

static DEVICE_NAME: [u16; 17] = wide(br"\Device\exerciser");
static LINK_NAME: [u16; 21] = wide(br"\DosDevices\exerciser");

fn name(text: &'static [u16]) -> UNICODE_STRING {
    let bytes = u16::try_from(text.len() * 2).unwrap_or(0);
    UNICODE_STRING {
        Length: bytes,
        MaximumLength: bytes,
        Buffer: text.as_ptr().cast_mut(),
    }
}

/// The driver's entry point.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    // SAFETY: the loader's driver object, ours until the entry point returns.
    let functions = unsafe { &raw mut (*driver).MajorFunction };
    // SAFETY: as above.
    let functions = unsafe { &mut *functions };
    for major in [
        IRP_MJ_CREATE,
        IRP_MJ_CLOSE,
        IRP_MJ_CLEANUP,
        IRP_MJ_DEVICE_CONTROL,
    ] {
        functions[major as usize] = Some(dispatch);
    }
    let mut device_name = name(&DEVICE_NAME);
    let mut device = core::ptr::null_mut();
    // SAFETY: PASSIVE_LEVEL; names and result are ours.
    let status = unsafe {
        IoCreateDevice(
            driver,
            0,
            &raw mut device_name,
            FILE_DEVICE_UNKNOWN,
            0,
            0,
            &raw mut device,
        )
    };
    if !NT_SUCCESS(status) {
        return status;
    }
    DEVICE.store(device, Ordering::Release);
    // SAFETY: the device just made; nobody can open it before the entry returns.
    let flags = unsafe { &raw mut (*device).Flags };
    // SAFETY: as above.
    let flags = unsafe { &mut *flags };
    *flags |= DO_BUFFERED_IO;
    let mut link = name(&LINK_NAME);
    // SAFETY: PASSIVE_LEVEL; both names are ours.
    let status = unsafe { IoCreateSymbolicLink(&raw mut link, &raw mut device_name) };
    if !NT_SUCCESS(status) {
        // SAFETY: made above, not open.
        unsafe { IoDeleteDevice(device) };
    }
    status
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    let mut link = name(&LINK_NAME);
    // SAFETY: made by the entry point.
    let _ = unsafe { IoDeleteSymbolicLink(&raw mut link) };
    // SAFETY: made by the entry point; nothing has it open.
    unsafe { IoDeleteDevice(DEVICE.load(Ordering::Acquire)) };
}

unsafe extern "C" fn dispatch(_device: PDEVICE_OBJECT, irp: *mut IRP) -> NTSTATUS {
    // SAFETY: the I/O manager's IRP, ours until it is completed.
    let request = unsafe { &mut *irp };
    // SAFETY: the member in use while a driver holds an IRP.
    let overlay = unsafe { request.Tail.Overlay };
    // SAFETY: likewise.
    let stack = unsafe {
        overlay
            .__bindgen_anon_2
            .__bindgen_anon_1
            .CurrentStackLocation
    };
    // SAFETY: the I/O manager set it to our location.
    let stack = unsafe { &*stack };
    let (status, information) = if u32::from(stack.MajorFunction) == IRP_MJ_DEVICE_CONTROL {
        // SAFETY: the member of this major function.
        let parameters = unsafe { stack.Parameters.DeviceIoControl };
        // SAFETY: the member in use for buffered I/O.
        let buffer = unsafe { request.AssociatedIrp.SystemBuffer };
        let input = parameters.InputBufferLength as usize;
        let output = parameters.OutputBufferLength as usize;
        if parameters.IoControlCode == COMMAND && !buffer.is_null() {
            // SAFETY: the system buffer is as long as the longer of both.
            let bytes =
                unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), input.max(output)) };
            control(bytes, input, output)
        } else {
            (STATUS_INVALID_DEVICE_REQUEST, 0)
        }
    } else {
        (STATUS_SUCCESS, 0)
    };
    request.IoStatus.__bindgen_anon_1.Status = status;
    request.IoStatus.Information = information as u64;
    // SAFETY: nobody uses the IRP after this.
    unsafe { IofCompleteRequest(irp, 0) };
    status
}

fn control(bytes: &mut [u8], input: usize, output: usize) -> (NTSTATUS, usize) {
    let mut copy = [0; 128];
    let Some(command) = copy.get_mut(..input) else {
        return (STATUS_INVALID_PARAMETER, 0);
    };
    command.copy_from_slice(&bytes[..input]);
    let Ok(command) = core::str::from_utf8(command) else {
        return (STATUS_INVALID_PARAMETER, 0);
    };
    if BUSY.swap(true, Ordering::Acquire) {
        return (STATUS_DEVICE_BUSY, 0);
    }
    let mut text = Text::new(&mut bytes[..output]);
    let known = run(command, &mut text);
    BUSY.store(false, Ordering::Release);
    let (length, whole) = text.finish();
    if !known {
        (STATUS_INVALID_PARAMETER, 0)
    } else if whole {
        (STATUS_SUCCESS, length)
    } else {
        (STATUS_BUFFER_OVERFLOW, length)
    }
}

fn number(word: Option<&str>) -> Option<u64> {
    let word = word?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// `CPU COMMAND ARGUMENT…`; whether there is such a command.
fn run(command: &str, text: &mut Text<'_>) -> bool {
    let mut words = command.split_whitespace();
    let Some(cpu) = number(words.next()).filter(|&cpu| cpu < 64) else {
        return false;
    };
    let Some(name) = words.next() else {
        return false;
    };
    // SAFETY: PASSIVE_LEVEL.
    let before = unsafe { KeSetSystemAffinityThreadEx(1 << cpu) };
    let known = execute(name, [number(words.next()), number(words.next())], text);
    // SAFETY: PASSIVE_LEVEL; the old affinity.
    unsafe { KeRevertToUserAffinityThreadEx(before) };
    known
}

fn execute(name: &str, arguments: [Option<u64>; 2], text: &mut Text<'_>) -> bool {
    let [first, second] = arguments.map(|argument| argument.unwrap_or(0));
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of MSRs and leaves"
    )]
    let (low, count) = (first as u32, second as u32);
    match name {
        "peers" => peers::all(text),
        "msrs" => sweeps::msrs(text, low, count),
        "scattered" => sweeps::scattered_msrs(text, low),
        "cpuid" => sweeps::cpuid_leaves(text, low, count),
        "cr" => sweeps::control_register(text, first),
        "xcr" => sweeps::extended_control(text, low),
        "deliver" => delivery::all(text, first),
        "flood" => flood::all(text, first),
        "patterns" => patterns::all(text, first),
        "svm" => svm::all(text),
        "system" => system::all(text, first),
        "triple" => instr::triple_fault(),
        _ => return false,
    }
    true
}
