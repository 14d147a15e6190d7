//! Versions of the CNI specification.

use std::fmt;

use serde_json::Value;

/// A version that Berth speaks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) enum Version {
    /// Results with `ip4` and `ip6`.
    V0_1,
    /// The same.
    V0_2,
    /// Results with `interfaces` and `ips`, chained plugins.
    V0_3_0,
    /// The same.
    V0_3_1,
    /// CHECK, and DEL with the result.
    V0_4,
    /// Addresses without their family.
    V1_0,
    /// STATUS and GC.
    V1_1,
}

const ALL: [(Version, &str); 7] = [
    (Version::V0_1, "0.1.0"),
    (Version::V0_2, "0.2.0"),
    (Version::V0_3_0, "0.3.0"),
    (Version::V0_3_1, "0.3.1"),
    (Version::V0_4, "0.4.0"),
    (Version::V1_0, "1.0.0"),
    (Version::V1_1, "1.1.0"),
];

impl Version {
    /// A version by its name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        ALL.iter()
            .find(|(_, name)| *name == text)
            .map(|(version, _)| *version)
    }

    /// The highest version that a configuration offers and Berth speaks. A configuration that says
    /// nothing is of the first version.
    pub(super) fn choose(one: Option<&Value>, several: Option<&Value>) -> Result<Self, String> {
        let mut offered = Vec::new();
        match one {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => offered.push(text.as_str()),
            Some(other) => return Err(format!("cniVersion {other} is not a text")),
        }
        match several {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => offered.extend(list.iter().filter_map(Value::as_str)),
            Some(other) => return Err(format!("cniVersions {other} is not a list")),
        }
        if offered.iter().all(|text| text.is_empty()) {
            return Ok(Self::V0_1);
        }
        offered
            .iter()
            .filter_map(|text| Self::parse(text))
            .max()
            .ok_or_else(|| format!("CNI version {} is not spoken here", offered.join(", ")))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL.iter().find(|(version, _)| version == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_highest_known_version_is_chosen() {
        let choose = |one, several: Value| Version::choose(Some(&one), Some(&several));
        assert_eq!(choose(json!("0.4.0"), json!(null)), Ok(Version::V0_4));
        let several = json!(["1.0.0", "1.1.0", "9.9.9"]);
        assert_eq!(choose(json!("0.4.0"), several), Ok(Version::V1_1));
        assert_eq!(choose(json!("1.0.0"), json!([])), Ok(Version::V1_0));
        assert_eq!(Version::choose(None, None), Ok(Version::V0_1));
        assert!(choose(json!("2.0.0"), json!(null)).is_err());
        assert!(choose(json!(1), json!(null)).is_err());
        for (version, name) in ALL {
            assert_eq!(version.to_string(), name);
            assert_eq!(Version::parse(&version.to_string()), Some(version));
        }
    }
}
