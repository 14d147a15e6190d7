//! The list of points is that of the sources.

use std::collections::BTreeSet;
use std::path::Path;

use super::POINTS;

/// The text of every source that may have points.
fn sources(dir: &Path, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true if name != "crash" => sources(&path, out),
            false if !["crash.rs", "undo.rs"].contains(&name.as_str()) => {
                out.push(std::fs::read_to_string(&path).unwrap());
            }
            _ => {}
        }
    }
}

/// Where the words of `text` begin that stand in quotes behind one of `openings`, in their order, with the opening.
fn quoted<'a>(text: &'a str, openings: &[&'static str]) -> Vec<(&'static str, &'a str)> {
    let mut found: Vec<(usize, &'static str, &str)> = Vec::new();
    for opening in openings {
        for (at, _) in text.match_indices(opening) {
            let rest = text[at + opening.len()..].trim_start();
            if let Some(word) = rest.strip_prefix('"').and_then(|r| r.split('"').next()) {
                found.push((at, *opening, word));
            }
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, o, word)| (o, word)).collect()
}

/// The points of a source: those that are named there, and those of the steps that are.
fn points(text: &str) -> Vec<String> {
    const POINT: &str = "crash_point!(";
    const OPERATION: &str = "Steps::of(";
    let openings = [
        POINT,
        OPERATION,
        ".push(",
        ".push_within(",
        ".push_blocking(",
    ];
    let mut operation = None;
    let mut points = Vec::new();
    for (opening, word) in quoted(text, &openings) {
        match opening {
            POINT => points.push(word.to_owned()),
            OPERATION => operation = Some(word),
            _ => points.extend(operation.map(|operation| format!("{operation}.{word}.after"))),
        }
    }
    points
}

#[test]
fn points_are_found_in_every_form() {
    let text = r#"v.push("no"); crash_point!("a.b.after"); let s = Steps::of("c");
        s.push_blocking("d e", || x); s.push_within(
            "f", LIMIT, y); crash_point!(&format!("{}", z));"#;
    assert_eq!(points(text), ["a.b.after", "c.d e.after", "c.f.after"]);
}

/// What is not listed would be tried by no test, and what is not there could not be reached by any.
#[test]
fn every_point_is_listed_and_there_once() {
    let mut texts = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&src, &mut texts);
    let found: Vec<String> = texts.iter().flat_map(|text| points(text)).collect();
    let once: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let twice: Vec<&String> = found
        .iter()
        .filter(|point| found.iter().filter(|other| other == point).count() > 1)
        .collect();
    assert!(twice.is_empty(), "there twice: {twice:?}");
    let listed: BTreeSet<&str> = POINTS.iter().copied().collect();
    assert_eq!(listed.len(), POINTS.len(), "listed twice");
    let difference = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| {
        let only: Vec<String> = a.difference(b).map(|&point| point.to_owned()).collect();
        only
    };
    let (unlisted, absent) = (difference(&once, &listed), difference(&listed, &once));
    assert!(unlisted.is_empty(), "not listed: {unlisted:?}");
    assert!(absent.is_empty(), "listed, and nowhere: {absent:?}");
}
