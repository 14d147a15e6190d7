//! Forms: frozen types, and their way to the model and back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{ContainerId, PodId};
use crate::model::Digest;

/// A value that the form can hold and the model cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unfit(pub String);

/// A frozen type.
pub(crate) trait Form: Sized {
    /// What the program works with.
    type Model;

    /// The form of a value.
    fn freeze(model: &Self::Model) -> Self;

    /// The value again.
    ///
    /// # Errors
    /// The model has no such value.
    fn thaw(self) -> Result<Self::Model, Unfit>;
}

/// Types whose own form in JSON is as old as they are, and stays.
macro_rules! as_it_is {
    ($($kind:ty),*) => {$(
        impl Form for $kind {
            type Model = Self;

            fn freeze(model: &Self) -> Self {
                model.clone()
            }

            fn thaw(self) -> Result<Self, Unfit> {
                Ok(self)
            }
        }
    )*};
}

as_it_is!(
    bool, u16, u32, u64, i32, i64, String, PathBuf, IpAddr, Ipv4Addr
);
as_it_is!(
    serde_json::Value,
    serde_json::Map<String, serde_json::Value>,
    Digest,
    PodId,
    ContainerId
);

impl<F: Form> Form for Vec<F> {
    type Model = Vec<F::Model>;

    fn freeze(model: &Self::Model) -> Self {
        model.iter().map(F::freeze).collect()
    }

    fn thaw(self) -> Result<Self::Model, Unfit> {
        self.into_iter().map(F::thaw).collect()
    }
}

impl<F: Form> Form for Option<F> {
    type Model = Option<F::Model>;

    fn freeze(model: &Self::Model) -> Self {
        model.as_ref().map(F::freeze)
    }

    fn thaw(self) -> Result<Self::Model, Unfit> {
        self.map(F::thaw).transpose()
    }
}

/// What the program shares is not shared on the disk.
impl<F: Form> Form for Box<F> {
    type Model = Arc<F::Model>;

    fn freeze(model: &Self::Model) -> Self {
        Self::new(F::freeze(model))
    }

    fn thaw(self) -> Result<Self::Model, Unfit> {
        Ok(Arc::new((*self).thaw()?))
    }
}

impl<F: Form> Form for BTreeMap<String, F> {
    type Model = BTreeMap<String, F::Model>;

    fn freeze(model: &Self::Model) -> Self {
        let entries = model.iter();
        entries
            .map(|(key, v)| (key.clone(), F::freeze(v)))
            .collect()
    }

    fn thaw(self) -> Result<Self::Model, Unfit> {
        let entries = self.into_iter();
        entries.map(|(key, v)| Ok((key, v.thaw()?))).collect()
    }
}

impl<A: Form, B: Form> Form for (A, B) {
    type Model = (A::Model, B::Model);

    fn freeze(model: &Self::Model) -> Self {
        (A::freeze(&model.0), B::freeze(&model.1))
    }

    fn thaw(self) -> Result<Self::Model, Unfit> {
        Ok((self.0.thaw()?, self.1.thaw()?))
    }
}

/// Bytes that are mostly text: text where they are, else `{"base64": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum BytesForm<'a> {
    Text(std::borrow::Cow<'a, str>),
    Coded { base64: String },
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match std::str::from_utf8(&self.0) {
            Ok(text) => BytesForm::Text(text.into()),
            Err(_) => BytesForm::Coded {
                base64: STANDARD.encode(&self.0),
            },
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match BytesForm::deserialize(deserializer)? {
            BytesForm::Text(text) => Ok(Self(text.into_owned().into_bytes())),
            BytesForm::Coded { base64 } => {
                let bytes = STANDARD.decode(base64);
                bytes.map(Self).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// Bytes as a list of numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers(Vec<u8>);

impl Form for Numbers {
    type Model = Vec<u8>;

    fn freeze(model: &Vec<u8>) -> Self {
        Self(model.clone())
    }

    fn thaw(self) -> Result<Vec<u8>, Unfit> {
        Ok(self.0)
    }
}

impl Form for Bytes {
    type Model = Vec<u8>;

    fn freeze(model: &Vec<u8>) -> Self {
        Self(model.clone())
    }

    fn thaw(self) -> Result<Vec<u8>, Unfit> {
        Ok(self.0)
    }
}

/// The way between a frozen struct and its model, field by field: a field that either has and the list does not have
/// does not compile.
macro_rules! convert {
    ($form:ty as $model:ty { $($field:ident),* $(,)? }) => {
        impl $crate::record::Form for $form {
            type Model = $model;

            fn freeze(model: &$model) -> Self {
                Self { $($field: $crate::record::Form::freeze(&model.$field)),* }
            }

            fn thaw(self) -> Result<$model, $crate::record::Unfit> {
                type Model = $model;
                Ok(Model { $($field: $crate::record::Form::thaw(self.$field)?),* })
            }
        }
    };
}

/// A frozen struct and its way to its model.
macro_rules! form {
    ($(#[$meta:meta])* $name:ident as $model:ty { $($(#[$of:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $(#[$meta])*
        pub(crate) struct $name { $($(#[$of])* pub(crate) $field: $kind),* }

        $crate::record::convert!($name as $model { $($field),* });
    };
}

/// A frozen enum and its way to its model.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident as $model:ty { $($(#[$of:meta])* $variant:ident $(($value:ident: $kind:ty))?),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $(#[$meta])*
        pub(crate) enum $name { $($(#[$of])* $variant $(($kind))?),* }

        impl $crate::record::Form for $name {
            type Model = $model;

            fn freeze(model: &$model) -> Self {
                type Model = $model;
                match model { $(Model::$variant $(($value))? => Self::$variant $(($crate::record::Form::freeze($value)))?),* }
            }

            fn thaw(self) -> Result<$model, $crate::record::Unfit> {
                type Model = $model;
                Ok(match self { $(Self::$variant $(($value))? => Model::$variant $(($crate::record::Form::thaw($value)?))?),* })
            }
        }

        #[cfg(test)]
        impl $crate::record::golden::Choice for $name {
            const NAMES: &[&str] = &[$(stringify!($variant)),*];
        }
    };
}

pub(crate) use {choice, convert, form};
