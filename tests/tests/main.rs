//! Berth's integration tests: a real daemon, real containers, a real registry, real CNI plugins.
//!
//! `cargo test -p berth-tests --test integration -- [--jobs N] [--list] [NAME...]`, as root, after `make build`.
//! With `BERTH_TEST_RUNTIME=containerd` the same tests judge containerd.

fn main() {}
