//! The table of faults in `docs/faults.md` names tests that are there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::paths;

/// Names of functions and modules in the Rust files below a folder.
fn names(folder: &Path, all: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            names(&path, all);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let module = path.with_extension("");
        all.extend(
            module
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let rest = line.split_once("fn ").or_else(|| line.split_once("mod "));
            let name = rest.map(|(_, rest)| rest.split(['(', ' ', ';', '<']).next());
            all.extend(name.flatten().map(str::to_owned));
        }
    }
}

#[test]
fn every_test_of_the_table_is_there() {
    let workspace = paths::workspace();
    let mut all = BTreeSet::new();
    for folder in ["runtime", "shim", "tests"] {
        names(&workspace.join(folder), &mut all);
    }
    let table = std::fs::read_to_string(workspace.join("docs/faults.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let tests: Vec<&str> = quoted.filter(|name| name.contains("::")).collect();
    assert!(tests.len() > 100, "{}", tests.len());
    let missing: Vec<_> = tests
        .iter()
        .filter(|test| !test.split("::").all(|part| all.contains(part)))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
