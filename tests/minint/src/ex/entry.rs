//! Entry stubs that tell an export who called it.
//!
//! What a driver still owns when it is unloaded is found by the module that the
//! return address lies in. A stub passes that address as one more argument, in
//! the next free position of the Microsoft x64 convention.

/// Defines the export `$name`, which calls `$target` with its `$count` arguments
/// and the return address.
macro_rules! caller_aware {
    ($name:ident, 1, $target:path) => {
        $crate::ex::entry::caller_aware!(@stub $name, $target, "mov rdx, [rsp]", "jmp {target}");
    };
    ($name:ident, 2, $target:path) => {
        $crate::ex::entry::caller_aware!(@stub $name, $target, "mov r8, [rsp]", "jmp {target}");
    };
    ($name:ident, 3, $target:path) => {
        $crate::ex::entry::caller_aware!(@stub $name, $target, "mov r9, [rsp]", "jmp {target}");
    };
    ($name:ident, 4, $target:path) => {
        $crate::ex::entry::caller_aware!(@stub $name, $target,
            "sub rsp, 0x38",
            "mov rax, [rsp + 0x38]",
            "mov [rsp + 0x20], rax",
            "call {target}",
            "add rsp, 0x38",
            "ret"
        );
    };
    ($name:ident, 5, $target:path) => {
        $crate::ex::entry::caller_aware!(@stub $name, $target,
            "sub rsp, 0x38",
            "mov rax, [rsp + 0x60]",
            "mov [rsp + 0x20], rax",
            "mov rax, [rsp + 0x38]",
            "mov [rsp + 0x28], rax",
            "call {target}",
            "add rsp, 0x38",
            "ret"
        );
    };
    (@stub $name:ident, $target:path, $($instruction:literal),*) => {
        #[doc = concat!("`", stringify!($name), "`: see the Microsoft documentation.")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            core::arch::naked_asm!($($instruction,)* target = sym $target)
        }
    };
}

pub(crate) use caller_aware;
