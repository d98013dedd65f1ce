//! Entry stubs of the variadic exports.
//!
//! A Microsoft x64 variadic callee stores its register arguments into their home
//! slots; the stack above is the rest of the list. Each stub does that and passes
//! the address of the first variable slot.

use core::arch::naked_asm;

macro_rules! variadic {
    ($name:ident, [$($instruction:literal),*], $target:path) => {
        #[doc = concat!("`", stringify!($name), "`: see the Microsoft documentation.")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            naked_asm!(
                "mov [rsp + 8], rcx",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], r8",
                "mov [rsp + 32], r9",
                $($instruction,)*
                "sub rsp, 0x28",
                "call {target}",
                "add rsp, 0x28",
                "ret",
                target = sym $target,
            )
        }
    };
}

variadic!(DbgPrint, ["lea rdx, [rsp + 16]"], super::print);
variadic!(
    DbgPrintReturnControlC,
    ["lea rdx, [rsp + 16]"],
    super::print
);
variadic!(
    DbgPrintEx,
    ["mov rcx, r8", "lea rdx, [rsp + 32]"],
    super::print
);
variadic!(_snprintf, ["lea r9, [rsp + 32]"], super::to_bytes);
variadic!(_snwprintf, ["lea r9, [rsp + 32]"], super::to_units);
variadic!(
    sprintf,
    ["lea r9, [rsp + 24]", "mov r8, rdx", "mov edx, 0x7FFFFFFF"],
    super::to_bytes
);
variadic!(
    swprintf,
    ["lea r9, [rsp + 24]", "mov r8, rdx", "mov edx, 0x3FFFFFFF"],
    super::to_units
);
