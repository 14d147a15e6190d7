//! The table of differences that are meant, each with its argument.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Difference;

/// The table `tests/difftest/known.txt`.
#[derive(Debug, Default)]
pub struct Known {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    because: String,
    key: String,
    berth: String,
    containerd: String,
}

impl Known {
    /// Reads the table: a line `because: ARGUMENT`, and indented below it `KEY | BERTH | CONTAINERD`, in each of which
    /// `*` stands for anything.
    ///
    /// # Errors
    /// When it cannot be read, or a line is not of that form.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        let mut because = None;
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(argument) = line.strip_prefix("because: ") {
                because = Some(argument.to_owned());
                continue;
            }
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            let [key, berth, containerd] = parts[..] else {
                anyhow::bail!("not KEY | BERTH | CONTAINERD: {line}");
            };
            let because = because.clone().context("a row before its argument")?;
            ensure!(key != "*", "a row for everything: {line}");
            rows.push(Row {
                because,
                key: key.to_owned(),
                berth: berth.to_owned(),
                containerd: containerd.to_owned(),
            });
        }
        Ok(Self { rows })
    }

    /// The argument for a difference, if it is in the table.
    #[must_use]
    pub fn argument(&self, difference: &Difference) -> Option<&str> {
        let fits = |row: &&Row| {
            matches(&row.key, &difference.key)
                && matches(&row.berth, &difference.berth)
                && matches(&row.containerd, &difference.containerd)
        };
        self.rows.iter().find(fits).map(|row| row.because.as_str())
    }
}

/// Whether the whole text is what the pattern says.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_anything_and_the_rest_itself() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("", "x", false),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*bc", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_row_belongs_to_the_argument_above_it() {
        let known = Known::parse("# note\nbecause: rain\n  mount.* | ro* | rw\n").unwrap();
        let difference = |containerd: &str| Difference {
            key: "mount./a".into(),
            berth: "ro,x".into(),
            containerd: containerd.into(),
        };
        assert_eq!(known.argument(&difference("rw")), Some("rain"));
        assert_eq!(known.argument(&difference("rw,x")), None);
        assert!(Known::parse("a | b | c").is_err());
        assert!(Known::parse("because: x\na | b").is_err());
        assert!(Known::parse("because: x\n* | b | c").is_err());
    }

    #[test]
    fn the_table_of_this_workspace_is_sound() {
        let file = crate::paths::workspace().join("tests/difftest/known.txt");
        Known::read(&file).unwrap();
    }
}
