//! The worker at work, on this machine's kernel and cgroups, as root. The tests play the monitor's part.
//!
//! Needs root and a static busybox (Debian: `busybox-static`); without them the tests fail, saying so.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::multiple_unsafe_ops_per_block
)]

mod create;
mod destinations;
mod driver;
mod exec;
mod holes;
mod nodes;
mod pod;
mod propagation;
mod speed;
mod waiting;
