//! WDFSTRING.

use wdk_standin::wdk_sys::{
    NTSTATUS, PCUNICODE_STRING, PUNICODE_STRING, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES,
    WDFSTRING,
};

use crate::{
    call::Call,
    nt::{irql, text::Text},
    object::{self, Attributes, Kind, Parent},
};

pub(crate) struct StringObject(Text);

// SAFETY: constant after creation.
unsafe impl Sync for StringObject {}

pub(crate) unsafe extern "C" fn wdf_string_create(
    globals: PWDF_DRIVER_GLOBALS,
    text: PCUNICODE_STRING,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    string: *mut WDFSTRING,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfStringCreate", irql::PASSIVE, globals) };
    // SAFETY: null, or the driver's string.
    let text = unsafe { Text::copy(text) }.unwrap_or_else(|| Text::from_units(&[]));
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let kind = Kind::String(StringObject(text));
        object::create(&call, &attributes, Parent::Default(call.driver()), kind)
    });
    call.finish(made, string)
}

pub(crate) unsafe extern "C" fn wdf_string_get_unicode_string(
    globals: PWDF_DRIVER_GLOBALS,
    string: WDFSTRING,
    to: PUNICODE_STRING,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfStringGetUnicodeString", irql::PASSIVE, globals) };
    let string = call.string(string);
    call.write(to, string.0.as_unicode());
}
