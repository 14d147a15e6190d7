//! The file that the package installs: it changes nothing until somebody takes away a `#`.

use super::KEYS;

const HEAD: &str = "\
# Configuration of Berth. Every key is here with its default, commented out; an unknown key is an error.
# Files in conf.d beside this one are read after it, in the order of their names, and win over it.
# `berth config show` prints what is in force and where it came from; see berth-config.toml(5).
";

/// Every key with its default and what it is for, commented out.
///
/// The headers of tables are not: a key without its `#` then is in the right table.
pub fn template() -> String {
    let mut text = HEAD.to_owned();
    let mut open = "";
    for key in KEYS {
        let (table, name) = key.table_and_name();
        if table != open {
            text.push_str(&format!("\n[{table}]\n"));
            open = table;
        } else {
            text.push('\n');
        }
        text.push_str(&format!(
            "# {}\n#{name} = {}\n",
            key.doc,
            key.default_toml()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Origin};

    fn load(text: &str) -> Config {
        crate::config::tests::load(text).unwrap()
    }

    #[test]
    fn as_it_is_it_sets_nothing() {
        let config = load(&template());
        assert!(config.origins.iter().all(|(_, _, o)| *o == Origin::Default));
    }

    #[test]
    fn without_its_comments_it_sets_every_key_to_its_default() {
        let text = template();
        // A description is "# words", a key is "#name = value".
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let (given, default) = (load(&uncommented), load(""));
        for (given, default) in given.origins.iter().zip(&default.origins) {
            assert!(
                matches!(given.2, Origin::File(..)),
                "{} is missing",
                given.0
            );
            assert_eq!((given.0, &given.1), (default.0, &default.1));
        }
    }
}
