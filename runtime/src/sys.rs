//! The kernel: what rustix and nix lack, behind safe functions. The only unsafe code of the crate.

pub mod cgroup;
pub mod fs;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod process;
