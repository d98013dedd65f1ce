//! Model tests: the crate's public interface against naive descriptions of what
//! the processor does. One binary, so that the models share their walker.

mod host;
mod machine;
mod memory_types;
mod private_path;
mod rng;
mod size;
mod slot;
mod space;
mod tlb;
mod transitions;
mod walker;
