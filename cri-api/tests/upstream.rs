//! Our interface is the published one: every message, field, enumeration, value and rpc, by name,
//! number and type.
//!
//! The published file comes from the Go module `k8s.io/cri-api` at the version and checksum that
//! `hack/cri-api` pins. It is read where Go keeps it; nothing of it is part of this repository.

#![allow(clippy::expect_used)] // A failed expectation is how a test fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// Where Go has unpacked the pinned module.
fn published_directory() -> PathBuf {
    let pin = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/cri-api");
    let output = Command::new("go")
        .args(["mod", "download", "-json", "k8s.io/cri-api"])
        .current_dir(pin)
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs Go to fetch the published interface, but `go` cannot be run: {error}")
        });
    assert!(
        output.status.success(),
        "Go cannot fetch k8s.io/cri-api as pinned in {pin}/go.mod (is the module proxy reachable?):\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("`go mod download -json` prints JSON");
    let directory = answer["Dir"]
        .as_str()
        .expect("the answer names a directory");
    Path::new(directory).join("pkg/apis/runtime/v1")
}

/// The one file of package `runtime.v1` in what was compiled.
fn interface(set: FileDescriptorSet) -> FileDescriptorProto {
    set.file
        .into_iter()
        .find(|file| file.package() == "runtime.v1")
        .expect("a file of package runtime.v1")
}

/// One line for every fact that the wire depends on.
fn facts(file: &FileDescriptorProto) -> BTreeSet<String> {
    let mut facts = BTreeSet::from([format!("syntax {}", file.syntax())]);
    for message in &file.message_type {
        message_facts("", message, &mut facts);
    }
    for enumeration in &file.enum_type {
        enum_facts("", enumeration, &mut facts);
    }
    for service in &file.service {
        service_facts(service, &mut facts);
    }
    facts
}

fn message_facts(prefix: &str, message: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{prefix}{}", message.name());
    let map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
    facts.insert(format!("message {name} map_entry={map_entry}"));
    for field in &message.field {
        let kind = Type::try_from(field.r#type.unwrap_or_default()).expect("a known type");
        let label = Label::try_from(field.label.unwrap_or_default()).expect("a known label");
        let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
        // A oneof shows by its name, and so does proto3's `optional`, which changes presence.
        let oneof = field.oneof_index.map(|index| {
            let index = usize::try_from(index).expect("an index");
            message.oneof_decl[index].name().to_owned()
        });
        facts.insert(format!(
            "field {name}.{} = {} {label:?} {kind:?} {} deprecated={deprecated} oneof={oneof:?}",
            field.name(),
            field.number(),
            field.type_name()
        ));
    }
    for nested in &message.nested_type {
        message_facts(&format!("{name}."), nested, facts);
    }
    for nested in &message.enum_type {
        enum_facts(&format!("{name}."), nested, facts);
    }
}

fn enum_facts(prefix: &str, enumeration: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{prefix}{}", enumeration.name());
    facts.insert(format!("enum {name}"));
    for value in &enumeration.value {
        facts.insert(format!(
            "value {name}.{} = {}",
            value.name(),
            value.number()
        ));
    }
}

fn service_facts(service: &ServiceDescriptorProto, facts: &mut BTreeSet<String>) {
    facts.insert(format!("service {}", service.name()));
    for method in &service.method {
        facts.insert(format!(
            "rpc {}.{} {} -> {} client_streaming={} server_streaming={}",
            service.name(),
            method.name(),
            method.input_type(),
            method.output_type(),
            method.client_streaming(),
            method.server_streaming()
        ));
    }
}

fn count(facts: &BTreeSet<String>, kind: &str) -> usize {
    facts.iter().filter(|fact| fact.starts_with(kind)).count()
}

#[test]
fn ours_is_the_published_interface() {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let ours = protox::compile(["api.proto"], [proto]).expect("proto/api.proto is in order");
    let ours = facts(&interface(ours));
    let published = protox::compile(["api.proto"], [published_directory()])
        .expect("the published interface can be read");
    let published = facts(&interface(published));

    let missing: Vec<_> = published.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&published).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "only published: {missing:#?}\nonly ours: {extra:#?}"
    );
    // A comparison of two empty sets would pass too.
    assert_eq!(count(&ours, "rpc "), 43);
    let map_entries = ours
        .iter()
        .filter(|f| f.ends_with("map_entry=true"))
        .count();
    assert_eq!(count(&ours, "message ") - map_entries, 175);
}
