//! Identifiers of pod sandboxes and containers.
//!
//! An id is 64 lower-case hexadecimal digits: the last component of a container's cgroup path, which
//! the kubelet and cAdvisor parse (row X046 and G035 of the requirements).

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: 64 lower-case hexadecimal digits are wanted")]
pub struct NotAnId(pub String);

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// A new id from the kernel's random numbers.
            ///
            /// # Errors
            /// When `/dev/urandom` cannot be read.
            pub fn generate() -> std::io::Result<Self> {
                let mut bytes = [0; 32];
                std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
                Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into()))
            }

            /// The 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, for names whose length is limited.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if digits && text.len() == 64 {
                    Ok(Self(text.into()))
                } else {
                    Err(NotAnId(text.chars().take(80).collect()))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAnId;

            fn try_from(text: String) -> Result<Self, NotAnId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(
    /// Id of a pod sandbox.
    PodId
);
id_type!(
    /// Id of a container.
    ContainerId
);

/// What a text finds among ids.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// Exactly one.
    One(T),
    /// Nothing; an empty text never finds anything.
    None,
    /// A prefix of several.
    Many,
}

/// Finds a value by its id or a unique prefix of it.
pub fn lookup<'a, K, V>(map: &'a std::collections::BTreeMap<K, V>, text: &str) -> Lookup<&'a V>
where
    K: Ord + std::borrow::Borrow<str>,
{
    if text.is_empty() {
        return Lookup::None;
    }
    let from = (std::ops::Bound::Included(text), std::ops::Bound::Unbounded);
    let mut hits = map
        .range::<str, _>(from)
        .take_while(|(id, _)| (*id).borrow().starts_with(text));
    match (hits.next(), hits.next()) {
        (None, _) => Lookup::None,
        (Some((_, value)), None) => Lookup::One(value),
        (Some((id, value)), Some(_)) if id.borrow() == text => Lookup::One(value),
        _ => Lookup::Many,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_parse_and_differ() {
        let (a, b) = (PodId::generate().unwrap(), PodId::generate().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<PodId>().unwrap(), a);
    }

    #[test]
    fn only_sixty_four_lower_case_digits_are_an_id() {
        for bad in [
            "",
            "../x",
            &"A".repeat(64),
            &"a".repeat(63),
            &"g".repeat(64),
        ] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_find_one_or_none_or_too_many() {
        let map: std::collections::BTreeMap<PodId, u8> = [("aa", 1), ("ab", 2)]
            .into_iter()
            .map(|(prefix, n)| (format!("{prefix}{}", "0".repeat(62)).parse().unwrap(), n))
            .collect();
        assert_eq!(lookup(&map, "aa"), Lookup::One(&1));
        assert_eq!(lookup(&map, "a"), Lookup::Many);
        assert_eq!(lookup(&map, "b"), Lookup::None);
        assert_eq!(lookup(&map, ""), Lookup::None);
    }
}
