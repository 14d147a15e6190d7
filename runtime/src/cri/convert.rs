//! Between protobuf and the vocabulary, and nothing else: what a request says is checked here once, and
//! an error names the field. No other module sees both.
//!
//! What Berth does not build yet is refused here rather than ignored; what every kubelet sends is never
//! refused (docs of each function say which is which).

pub(super) mod container;
mod container_status;
pub(super) mod image;
mod mounts;
mod namespaces;
pub(super) mod pod;
mod resources;
mod security;
mod signals;
pub(super) mod stats;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

pub(super) use container_status::{container_item, container_status};
pub(super) use resources::resources;

use crate::model::{Kind, Kinded};

/// Bytes that the labels or the annotations of one object may have. The API server allows annotations a
/// quarter of a megabyte, and kubelets add their own; more would make the status of an object too large.
const MAX_NOTES: usize = 2 << 20;

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// It cannot be meant.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It could be meant, but Berth does not do it.
    #[error("{field}: {what}")]
    NotBuilt {
        /// Which field.
        field: String,
        /// What is not built.
        what: String,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::NotBuilt { .. } => Kind::Unimplemented,
        }
    }
}

/// What the machine and this build can do, as far as a request may ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// AppArmor profiles can be applied on the host.
    pub apparmor: bool,
    /// What becomes of SELinux options.
    pub selinux: SelinuxOptions,
    /// Extra mount options are applied.
    pub mount_options: bool,
}

/// What becomes of a request's SELinux options. CRI calls them "optionally applied": where nothing comes of
/// labels, whoever sends them loses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelinuxOptions {
    /// They are left aside.
    #[default]
    Ignored,
    /// SELinux enforces, and Berth does not label.
    Refused,
}

/// Where in a request we are. Becomes text only for an error.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> At<'a> {
    /// A field of the request itself.
    pub(super) fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            name,
            index: None,
        }
    }

    /// A field of this message.
    pub(super) fn field(&'a self, name: &'a str) -> Self {
        Self {
            parent: Some(self),
            name,
            index: None,
        }
    }

    /// One of this repeated field.
    pub(super) fn index(self, index: usize) -> Self {
        Self {
            index: Some(index),
            ..self
        }
    }

    /// The error that this field is wrong.
    pub(super) fn invalid(&self, problem: impl Into<String>) -> Error {
        Error::Invalid {
            field: self.to_string(),
            problem: problem.into(),
        }
    }

    /// The error that this field asks for something that is not built.
    pub(super) fn not_built(&self, what: impl Into<String>) -> Error {
        Error::NotBuilt {
            field: self.to_string(),
            what: what.into(),
        }
    }

    /// A message that must be there.
    pub(super) fn required<T>(&self, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.invalid("is missing"))
    }

    /// A text that must not be empty.
    pub(super) fn filled(&self, text: String) -> Result<String, Error> {
        if text.is_empty() {
            return Err(self.invalid("is empty"));
        }
        self.text(text)
    }

    /// A text that will be handed to the kernel: no NUL byte.
    pub(super) fn text(&self, text: String) -> Result<String, Error> {
        if text.contains('\0') {
            return Err(self.invalid("contains a NUL byte"));
        }
        Ok(text)
    }

    /// A text that will be a line of a file or a part of one: no control characters.
    pub(super) fn line(&self, text: String) -> Result<String, Error> {
        if text.chars().any(char::is_control) {
            return Err(self.invalid(format!("{text:?} contains a control character")));
        }
        Ok(text)
    }

    /// Labels or annotations, of bounded size.
    pub(super) fn notes(
        &self,
        notes: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let bytes: usize = notes
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if bytes > MAX_NOTES {
            return Err(self.invalid(format!(
                "has {bytes} bytes in total; {MAX_NOTES} are the most"
            )));
        }
        Ok(notes)
    }

    /// Each of a repeated text through `check`.
    pub(super) fn each(
        &self,
        texts: Vec<String>,
        check: impl Fn(&At<'a>, String) -> Result<String, Error>,
    ) -> Result<Vec<String>, Error> {
        let texts = texts.into_iter().enumerate();
        texts.map(|(i, t)| check(&self.index(i), t)).collect()
    }

    /// A value of an enumeration that this version knows.
    pub(super) fn known<E: TryFrom<i32>>(&self, number: i32) -> Result<E, Error> {
        E::try_from(number).map_err(|_| self.invalid(format!("{number} is not a known value")))
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// An id as a request gives it: whole or a prefix, but never empty, which would be the prefix of all.
pub(super) fn id(field: &str, id: String) -> Result<String, Error> {
    At::root(field).filled(id)
}
