//! Berth, a Kubernetes container runtime: the daemon and the operator's commands.
//!
//! Read `ARCHITECTURE.md` first. Modules stand on levels, and an import only goes down;
//! `tests/arrows.rs` holds the table and checks it.

// Before all others: its macro is for all of them.
#[macro_use]
pub mod crash;

// Level 5: process.
pub mod cli;
pub mod daemon;
pub mod recover;

// Level 4: border. Protobuf types and HTTP stop here.
pub mod admin;
pub mod cri;

// Level 3: domain.
pub mod container;
pub mod image;
pub mod pod;
pub mod stats;

// Level 2: mechanism. Siblings do not know each other.
pub mod apparmor;
pub mod cgroup;
pub mod layer;
pub mod network;
pub mod registry;
pub mod shim;
pub mod spec;
pub mod storage;

// Level 1: base.
pub mod blocking;
pub mod config;
pub mod events;
pub mod host;
pub mod json;
pub mod metrics;
pub mod program;
pub mod record;
pub mod store;
pub mod systemd;
pub(crate) mod tarball;
pub mod telemetry;
pub mod undo;

// Level 1, the vocabulary that everything above level 0 speaks.
pub mod id;
pub mod model;

// Level 0: kernel. The only unsafe code of the crate.
pub mod sys;
