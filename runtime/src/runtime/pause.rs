//! The pause program.

/// A static ELF program of a few KiB for this machine's architecture, compiled from `shim/pause`.
pub static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
