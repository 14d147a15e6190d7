//! critest: which of its specs must pass, which wait for something, and what its report says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// What specs wait for that stop themselves on a machine without AppArmor. On one that has it they must pass.
const APPARMOR: &str = "a machine with AppArmor";

/// The two lists in `tests/critest`.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// specs that must pass
    pub required: BTreeSet<String>,
    /// specs that wait, each with what it waits for
    pub waiting: BTreeMap<String, String>,
}

impl Lists {
    /// Reads `required.txt` and `waiting.txt`. Nobody waits for what this machine has.
    ///
    /// # Errors
    /// When a file is missing, or a name stands twice or before its reason.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let mut lists = Self::parse(&read("required.txt")?, &read("waiting.txt")?)?;
        if crate::machine::lacks_apparmor().is_none() {
            lists.met(APPARMOR);
        }
        Ok(lists)
    }

    /// What waited for this reason is required.
    fn met(&mut self, reason: &str) {
        let names = self.waiting.iter().filter(|(_, waits)| *waits == reason);
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.waiting.remove(&name);
            self.required.insert(name);
        }
    }

    fn parse(required: &str, waiting: &str) -> Result<Self> {
        let mut lists = Self::default();
        for name in lines(required) {
            ensure!(
                lists.required.insert(name.to_owned()),
                "listed twice: {name}"
            );
        }
        let mut reason = None;
        for line in lines(waiting) {
            if let Some(text) = line.strip_prefix("waits for: ") {
                reason = Some(text.to_owned());
                continue;
            }
            let reason = reason
                .clone()
                .context("a name before the first `waits for:`")?;
            ensure!(
                !lists.required.contains(line),
                "both required and waiting: {line}"
            );
            let twice = lists.waiting.insert(line.to_owned(), reason).is_some();
            ensure!(!twice, "listed twice: {line}");
        }
        Ok(lists)
    }

    /// Checks that the lists name every spec of the suite and nothing else.
    ///
    /// # Errors
    /// With the names that are unknown to one side.
    pub fn check(&self, suite: &BTreeMap<String, Outcome>) -> Result<()> {
        let listed: BTreeSet<&String> = self.required.iter().chain(self.waiting.keys()).collect();
        let unlisted: Vec<_> = suite.keys().filter(|name| !listed.contains(name)).collect();
        let unknown: Vec<_> = listed
            .iter()
            .filter(|name| !suite.contains_key(**name))
            .collect();
        ensure!(
            unlisted.is_empty() && unknown.is_empty(),
            "tests/critest does not match the suite: in no list {unlisted:#?}, not in the suite {unknown:#?}"
        );
        Ok(())
    }

    /// A ginkgo expression that matches every waiting spec.
    #[must_use]
    pub fn skip_expression(&self) -> String {
        let names: Vec<String> = self.waiting.keys().map(|name| escaped(name)).collect();
        names.join("|")
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The name as a regular expression. ginkgo matches against the name without its `[Serial]` and other decorations at
/// the end, so those are left out.
fn escaped(name: &str) -> String {
    let name = name.trim_end_matches(" [Serial]");
    let mut text = String::with_capacity(name.len() + 16);
    for letter in name.chars() {
        if "\\.+*?()|[]{}^$".contains(letter) {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// it passed
    Passed,
    /// it was not run, or stopped itself
    Skipped,
    /// it failed, with the first lines of why
    Failed(String),
}

/// Reads a JUnit report: each spec's name with its outcome.
///
/// # Errors
/// When the text is not a report.
pub fn report(text: &str) -> Result<BTreeMap<String, Outcome>> {
    ensure!(text.contains("<testsuite"), "this is no JUnit report");
    let mut specs = BTreeMap::new();
    for part in text.split("<testcase ").skip(1) {
        let name = attribute(part, "name").context("a test case without a name")?;
        let status = attribute(part, "status").context("a test case without a status")?;
        let Some(name) = name.strip_prefix("[It] ") else {
            // Set-up of the suite: only its failure matters.
            ensure!(status == "passed" || status == "skipped", "{name} {status}");
            continue;
        };
        let outcome = match status.as_str() {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped,
            _ => Outcome::Failed(why(part)),
        };
        if specs.insert(name.to_owned(), outcome).is_some() {
            bail!("two specs are called {name}");
        }
    }
    Ok(specs)
}

fn why(part: &str) -> String {
    let message = part
        .split_once("<failure ")
        .and_then(|(_, rest)| attribute(rest, "message"))
        .unwrap_or_else(|| "no message".to_owned());
    message
        .lines()
        .take(12)
        .collect::<Vec<_>>()
        .join("\n      ")
}

fn attribute(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("{name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    let plain = [
        ("&#39;", "'"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#xA;", "\n"),
        ("&#x9;", "\t"),
        ("&amp;", "&"),
    ];
    let decode = |value: String, (code, letter): &(&str, &str)| value.replace(code, letter);
    Some(plain.iter().fold(value.to_owned(), decode))
}

/// The result of a run against the lists.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// required and passed
    pub passed: usize,
    /// required, and failed or not run: name and why
    pub failed: Vec<(String, String)>,
    /// waiting, and it passed all the same: move it
    pub ripe: Vec<String>,
    /// how many wait for each reason
    pub waiting: BTreeMap<String, usize>,
}

/// Compares a run with the lists.
#[must_use]
pub fn judge(lists: &Lists, specs: &BTreeMap<String, Outcome>) -> Verdict {
    let mut verdict = Verdict::default();
    for name in &lists.required {
        match specs.get(name) {
            Some(Outcome::Passed) => verdict.passed += 1,
            Some(Outcome::Failed(why)) => verdict.failed.push((name.clone(), why.clone())),
            Some(Outcome::Skipped) => {
                verdict
                    .failed
                    .push((name.clone(), "the spec skipped itself".into()));
            }
            None => verdict
                .failed
                .push((name.clone(), "the spec did not run".into())),
        }
    }
    for (name, reason) in &lists.waiting {
        *verdict.waiting.entry(reason.clone()).or_insert(0) += 1;
        if specs.get(name) == Some(&Outcome::Passed) {
            verdict.ripe.push(name.clone());
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<testsuites><testsuite name="CRI validation">
        <testcase name="[BeforeSuite]" classname="c" status="passed" time="0"></testcase>
        <testcase name="[It] a &#39;b&#39;" status="passed" time="0"></testcase>
        <testcase name="[It] c" status="failed" time="1"><failure message="no &lt;nil&gt;" type="failed"></failure></testcase>
        <testcase name="[It] d" status="skipped" time="0"></testcase></testsuite></testsuites>"#;

    #[test]
    fn a_report_is_read() {
        let specs = report(REPORT).unwrap();
        assert_eq!(specs.get("a 'b'"), Some(&Outcome::Passed));
        assert_eq!(specs.get("c"), Some(&Outcome::Failed("no <nil>".into())));
        assert_eq!(specs.len(), 3);
    }

    #[test]
    fn a_skipped_spec_that_is_required_fails() {
        let lists = Lists::parse("a 'b'\nd\n", "waits for: rain\n  c\n").unwrap();
        let specs = report(REPORT).unwrap();
        lists.check(&specs).unwrap();
        let verdict = judge(&lists, &specs);
        assert_eq!((verdict.passed, verdict.failed.len()), (1, 1));
        assert_eq!(verdict.waiting.get("rain"), Some(&1));
    }

    #[test]
    fn what_the_machine_has_is_not_waited_for() {
        let mut lists =
            Lists::parse("a 'b'\n", "waits for: rain\n  c\nwaits for: sun\n d\n").unwrap();
        lists.met("rain");
        assert!(lists.required.contains("c") && lists.required.contains("a 'b'"));
        assert_eq!(lists.waiting.keys().collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn an_unlisted_spec_is_an_error() {
        let lists = Lists::parse("a 'b'\n", "waits for: rain\n  c\n").unwrap();
        let error = lists
            .check(&report(REPORT).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("in no list"), "{error}");
    }

    #[test]
    fn a_name_is_in_one_list_only() {
        assert!(Lists::parse("a\n", "waits for: x\n  a\n").is_err());
        assert!(Lists::parse("a\na\n", "").is_err());
        assert!(Lists::parse("", "a\n").is_err());
    }

    #[test]
    fn the_lists_of_this_workspace_are_sound() {
        let lists = Lists::read(&crate::paths::workspace().join("tests/critest")).unwrap();
        let waits = lists.waiting.values().any(|reason| reason == APPARMOR);
        assert_eq!(waits, crate::machine::lacks_apparmor().is_some());
    }
}
