//! What root mode stands on: page tables, descriptor tables, exception handlers
//! and windows of its own, so that nothing that the guest can write is walked,
//! executed or trusted (reliability: own CR3, GDT, IDT, TSS and stacks per core).

pub mod descriptors;
pub mod exceptions;
pub mod leaving;
pub mod paging;
pub mod stubs;
pub mod window;
