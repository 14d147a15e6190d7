//! The committed Rust code is what `proto/api.proto` gives.

#![allow(clippy::expect_used)] // A failed expectation is how a test fails.

use std::path::Path;

/// Generates the code into `directory` and returns it.
fn generate(directory: &Path) -> String {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let descriptors = protox::compile(["api.proto"], [proto]).expect("proto/api.proto is in order");
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        .client_mod_attribute("runtime.v1", "#[cfg(feature = \"client\")]")
        .btree_map(".")
        .skip_debug([".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"])
        .emit_rerun_if_changed(false)
        .out_dir(directory)
        .compile_fds(descriptors)
        .expect("the code can be generated");
    std::fs::read_to_string(directory.join("runtime.v1.rs")).expect("the code was written")
}

#[test]
fn committed_code_is_current() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let fresh = generate(directory.path());
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gen/runtime.v1.rs");
    if std::env::var_os("CRI_API_REGENERATE").is_some() {
        std::fs::write(committed, &fresh).expect("the committed file can be written");
    }
    let current = std::fs::read_to_string(committed).expect("the committed file can be read");
    assert!(
        fresh == current,
        "{committed} is out of date: run `CRI_API_REGENERATE=1 cargo test -p berth-cri-api`"
    );
}
