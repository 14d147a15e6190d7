//! Module arrows only go down (design: levels; docs/adr/0001 for the vocabulary).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Level of each top module. A module may use what stands on a lower level, and itself.
const LEVELS: &[(&str, &[&str])] = &[
    ("5 process", &["main", "cli", "daemon", "recover"]),
    ("4 border", &["cri", "admin"]),
    ("3 domain", &["pod", "container", "image", "stats"]),
    (
        "2 mechanism",
        &[
            "apparmor", "cgroup", "layer", "network", "registry", "shim", "spec", "storage",
        ],
    ),
    (
        "1 base",
        &[
            "blocking",
            "config",
            "events",
            "host",
            "json",
            "metrics",
            "program",
            "record",
            "store",
            "systemd",
            "tarball",
            "telemetry",
            "undo",
        ],
    ),
    ("0 vocabulary", &["id", "model"]),
    ("0 tests", &["crash"]),
    ("0 kernel", &["sys"]),
];

/// Siblings that may know each other, each with the reason.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("main", "cli", "the executable only calls the command line"),
    ("cli", "daemon", "`berth serve` starts the daemon"),
    ("daemon", "recover", "the composition root drives recovery"),
    ("model", "id", "the vocabulary is one thing in two files"),
    (
        "store",
        "record",
        "what it puts into directories are records",
    ),
];

/// What the border must not touch although it stands lower: level 4 speaks to level 3 (and to the base).
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "cri",
        &[
            "apparmor", "cgroup", "layer", "network", "registry", "shim", "spec", "storage", "sys",
        ],
    ),
    (
        "admin",
        &[
            "apparmor", "cgroup", "layer", "network", "registry", "shim", "spec", "storage", "sys",
        ],
    ),
];

fn files(dir: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// Top modules that a source text names after `crate::`, also in groups (`use crate::{a, b::c}`).
fn named(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let code = line.split("//").next().unwrap_or_default();
        let mut rest = code;
        while let Some(at) = rest.find("crate::") {
            let is_other = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            rest = &rest[at + "crate::".len()..];
            if is_other {
                continue;
            }
            if let Some(group) = rest.strip_prefix('{') {
                let inner = group.split('}').next().unwrap_or_default();
                found.extend(inner.split(',').map(|part| word(part.trim())));
            } else {
                found.push(word(rest));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn arrows_only_go_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let level: BTreeMap<&str, usize> = LEVELS
        .iter()
        .rev()
        .enumerate()
        .flat_map(|(n, (_, modules))| modules.iter().map(move |m| (*m, n)))
        .collect();
    let mut sources = Vec::new();
    files(&src, &mut sources).unwrap();
    let mut wrong = Vec::new();
    for file in sources {
        let relative = file.strip_prefix(&src).unwrap();
        let from = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        if from == "lib" {
            continue;
        }
        let Some(own) = level.get(from.as_str()) else {
            wrong.push(format!(
                "{}: module {from} is not in the table of levels",
                relative.display()
            ));
            continue;
        };
        for to in named(&std::fs::read_to_string(&file).unwrap()) {
            let Some(other) = level.get(to.as_str()) else {
                continue;
            };
            let allowed = from == to
                || (other < own
                    && !FORBIDDEN
                        .iter()
                        .any(|(f, t)| *f == from && t.contains(&to.as_str())))
                || ALLOWED.iter().any(|(f, t, _)| *f == from && *t == to);
            if !allowed {
                wrong.push(format!("{}: {from} -> {to}", relative.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(
        wrong.is_empty(),
        "arrows that do not go down:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn names_are_found_in_every_form() {
    let text = "use crate::{a, b::c};\nlet x = crate::d::e();\n// crate::no\nother_crate::f();";
    assert_eq!(named(text), ["a", "b", "d"]);
}
