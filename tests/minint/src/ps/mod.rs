//! Threads and processes.
