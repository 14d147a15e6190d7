//! Fuzzing of what reads hostile bytes. In `cargo test`: the corpus and some seconds; `make fuzz`: longer.
//!
//! See `fuzz/engine.rs` for how, and `docs/fuzzing.md` for what to do with a finding.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are tests, too.

#[path = "fuzz/archive.rs"]
mod archive;
#[path = "fuzz/engine.rs"]
mod engine;
#[path = "fuzz/text.rs"]
mod text;

const TARGETS: u64 = 6;

#[test]
fn reference() {
    engine::drive(&text::REFERENCE, TARGETS);
}

#[test]
fn json() {
    engine::drive(&text::JSON, TARGETS);
}

#[test]
fn manifest() {
    engine::drive(&text::MANIFEST, TARGETS);
}

#[test]
fn hosts() {
    engine::drive(&text::HOSTS, TARGETS);
}

#[test]
fn tar() {
    engine::drive(&archive::TAR, TARGETS);
}

#[test]
fn whiteout() {
    engine::drive(&archive::WHITEOUT, TARGETS);
}
