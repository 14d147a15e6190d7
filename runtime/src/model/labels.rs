//! Labels and selectors.

use std::collections::BTreeMap;

/// Whether labels are all that a selector wants, with these values.
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
