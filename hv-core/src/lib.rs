//! The thin hypervisor: it turns the running system into its own guest, keeps
//! every page either writable or executable for the guest's kernel, and gives
//! the machine back.
//!
//! Three kinds of code meet here and must not be mixed up:
//!
//! * **guest context**: the driver calls [`launch`] at PASSIVE_LEVEL; memory is
//!   allocated, tables are built, cores are taken over one after the other;
//! * **root mode**: everything reached from the exit stub in [`vmx::entry`].
//!   There is no operating system there: no NT call, no allocation, no
//!   formatting, no lock that guest code takes, no panic path. It runs on the
//!   core's own stack, descriptor tables and page tables ([`host`]), from a
//!   private copy of the driver image that the guest cannot write;
//! * **pure code**: decoding of exits and of capabilities, functions of plain
//!   values that are tested on the host.
//!
//! Vendor code ([`vmx`]) decodes and carries out; neutral code ([`violation`],
//! [`shootdown`], [`emulate`]) decides. What a page crossing means is decided
//! by nobody here: that is the [`monitor::Monitor`]'s business, which the driver
//! implements.
//!
//! Manuals are cited by title and section: *Intel SDM* is the Intel 64 and IA-32
//! Architectures Software Developer's Manual, order number 325462, revision 084.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod apic;
pub mod backend;
pub mod counters;
pub mod emulate;
pub mod error;
pub mod event;
pub mod exit;
pub mod host;
pub mod hypercall;
pub mod hypervisor;
pub mod instr;
pub mod launch;
pub mod ledger;
pub mod memory;
pub mod monitor;
pub mod percpu;
pub mod platform;
pub mod probe;
pub mod ram;
pub mod registers;
pub mod seeded;
pub mod shootdown;
pub mod step;
pub mod svm;
pub mod trace;
pub mod transition;
pub mod violation;
pub mod vmx;
pub mod walk;
