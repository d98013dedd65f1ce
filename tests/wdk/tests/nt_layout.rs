//! The bindings come from mingw-w64's headers, Windows from Microsoft's: the
//! structures that driver and kernel share must have Windows' layout on x64.
//! Figures: the public symbols of ntoskrnl.exe, Windows 10 and 11. One thing is
//! missing: Microsoft aligns `DEVICE_OBJECT` and `IRP` to 16 bytes, which makes the
//! first 8 bytes longer at its end.

use core::mem::offset_of;

use wdk_standin::wdk_sys::{
    CONTEXT, DEVICE_OBJECT, DISPATCHER_HEADER, DRIVER_OBJECT, ERESOURCE, FAST_MUTEX, FILE_OBJECT,
    GROUP_AFFINITY, IMAGE_INFO, IO_STACK_LOCATION, IRP, KDPC, KEVENT, KMUTANT, KSEMAPHORE, KTIMER,
    LIST_ENTRY, MDL, OBJECT_ATTRIBUTES, PROCESSOR_NUMBER, UNICODE_STRING,
};

macro_rules! layout {
    ($type:ty, $size:literal $(, $field:ident $(. $more:ident)* @ $offset:literal)*) => {
        assert_eq!(size_of::<$type>(), $size, "size of {}", stringify!($type));
        $(assert_eq!(
            offset_of!($type, $field $(. $more)*), $offset,
            "offset of {}.{}", stringify!($type), stringify!($field)
        );)*
    };
}

#[test]
fn structures_shared_with_the_kernel_have_windows_layout() {
    layout!(UNICODE_STRING, 0x10, Buffer @ 8);
    layout!(LIST_ENTRY, 0x10);
    layout!(OBJECT_ATTRIBUTES, 0x30, ObjectName @ 0x10, Attributes @ 0x18);
    layout!(DISPATCHER_HEADER, 0x18);
    layout!(KEVENT, 0x18);
    layout!(KSEMAPHORE, 0x20);
    layout!(KMUTANT, 0x38);
    layout!(FAST_MUTEX, 0x38);
    layout!(ERESOURCE, 0x68);
    layout!(KDPC, 0x40, DeferredRoutine @ 0x18, DeferredContext @ 0x20, SystemArgument1 @ 0x28, SystemArgument2 @ 0x30);
    layout!(KTIMER, 0x40, DueTime @ 0x18, TimerListEntry @ 0x20, Dpc @ 0x30, Period @ 0x3c);
    layout!(MDL, 0x30, Size @ 8, MdlFlags @ 0xa, MappedSystemVa @ 0x18, StartVa @ 0x20, ByteCount @ 0x28, ByteOffset @ 0x2c);
    layout!(DRIVER_OBJECT, 0x150, DeviceObject @ 8, Flags @ 0x10, DriverStart @ 0x18, DriverSize @ 0x20,
        DriverSection @ 0x28, DriverExtension @ 0x30, DriverName @ 0x38, DriverInit @ 0x58, DriverUnload @ 0x68, MajorFunction @ 0x70);
    layout!(DEVICE_OBJECT, 0x148, ReferenceCount @ 4, DriverObject @ 8, NextDevice @ 0x10, AttachedDevice @ 0x18,
        Flags @ 0x30, Characteristics @ 0x34, DeviceExtension @ 0x40, DeviceType @ 0x48, StackSize @ 0x4c, DeviceObjectExtension @ 0x138);
    layout!(FILE_OBJECT, 0xd8, DeviceObject @ 8, FsContext @ 0x18, FsContext2 @ 0x20, Flags @ 0x50, FileName @ 0x58);
    layout!(IO_STACK_LOCATION, 0x48, Control @ 3, Parameters @ 8, DeviceObject @ 0x28, FileObject @ 0x30,
        CompletionRoutine @ 0x38, Context @ 0x40);
    layout!(IRP, 0xd0, MdlAddress @ 8, Flags @ 0x10, AssociatedIrp @ 0x18, ThreadListEntry @ 0x20, IoStatus @ 0x30,
        RequestorMode @ 0x40, PendingReturned @ 0x41, StackCount @ 0x42, CurrentLocation @ 0x43, Cancel @ 0x44,
        CancelIrql @ 0x45, UserIosb @ 0x48, UserEvent @ 0x50, CancelRoutine @ 0x68, UserBuffer @ 0x70, Tail @ 0x78);
    layout!(CONTEXT, 0x4d0, Rax @ 0x78, Rip @ 0xf8);
    layout!(IMAGE_INFO, 0x28, ImageBase @ 8, ImageSize @ 0x18);
    layout!(PROCESSOR_NUMBER, 4);
    layout!(GROUP_AFFINITY, 0x10);
}
