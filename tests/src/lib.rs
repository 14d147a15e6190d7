//! What Berth's integration tests, its critest run and its benchmark share: images made on the spot, a local registry,
//! a CRI client, a throw-away daemon (Berth or containerd), and a check that nothing is left behind.

// The futures of tonic's calls are large, and here are never more than a handful.
#![allow(clippy::large_futures)]

pub mod bench;
pub mod cri;
pub mod critest;
pub mod difftest;
#[cfg(test)]
mod faults;
pub mod images;
pub mod leak;
pub mod machine;
pub mod oci;
pub mod paths;
pub mod pods;
pub mod process;
pub mod registry;
pub mod runner;
pub mod runtime;
pub mod subnet;
pub mod terminal;
pub mod tree;
