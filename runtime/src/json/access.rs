//! From JSON to types: serde's view of the reader.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::scan::{Reader, Scalar};
use super::{Error, RAW, is_same_name, printable};

/// Values within each other that are kept: the types that are read know no depth, but there are some of any form.
const MAX_DEPTH: usize = 100;

impl<'de> Reader<'de> {
    /// What is there instead of what is wanted.
    fn other<T>(&mut self, wanted: &str) -> Result<T, Error> {
        let found = match self.peek()? {
            b'{' => "an object",
            b'[' => "a list",
            b'"' => "a string",
            b't' | b'f' => "a boolean",
            b'n' => "null",
            _ => "a number",
        };
        // It has to be JSON to be of the wrong form.
        self.skip()?;
        Err(Error::form(format_args!("{wanted} is wanted, not {found}")))
    }

    fn deeper(&mut self) -> Result<(), Error> {
        self.depth += 1;
        match self.depth > MAX_DEPTH {
            true => Err(Error::new(format!("nested more than {MAX_DEPTH} deep"))),
            false => Ok(()),
        }
    }

    fn bounded(&self, count: usize) -> Result<(), Error> {
        match self.entries {
            most if count > most => Err(Error::new(format!(
                "more than {most} entries in a list or map"
            ))),
            _ => Ok(()),
        }
    }

    fn list<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.expect(b'[')?;
        self.deeper()?;
        let mut list = List {
            reader: self,
            count: 0,
            ended: false,
        };
        let value = visitor.visit_seq(&mut list)?;
        if !list.ended {
            return Err(Error::form("fewer entries are wanted"));
        }
        self.depth -= 1;
        Ok(value)
    }

    fn object<V: Visitor<'de>>(
        &mut self,
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.expect(b'{')?;
        self.deeper()?;
        let value = match fields {
            Some(fields) => visitor.visit_map(Members {
                reader: self,
                fields,
                seen: vec![false; fields.len()],
                begun: false,
            }),
            None => visitor.visit_map(Map {
                reader: self,
                keys: BTreeSet::new(),
            }),
        }?;
        self.depth -= 1;
        Ok(value)
    }

    fn whole<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        if !matches!(self.peek()?, b'-' | b'0'..=b'9') {
            return match self.null()? {
                true => visitor.visit_u64(0),
                false => self.other("a number"),
            };
        }
        let Scalar::Number(text) = self.scalar()? else {
            return Err(Error::form("a number is wanted"));
        };
        if let Ok(number) = text.parse() {
            return visitor.visit_u64(number);
        }
        match text.parse() {
            Ok(number) => visitor.visit_i64(number),
            Err(_) => Err(Error::form(format_args!(
                "a whole number is wanted, not {}",
                text.get(..40).unwrap_or(text)
            ))),
        }
    }

    fn any_number<V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Error> {
        if let Ok(number) = text.parse() {
            return visitor.visit_u64(number);
        }
        if let Ok(number) = text.parse() {
            return visitor.visit_i64(number);
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => visitor.visit_f64(number),
            _ => Err(Error::form("a number is too large")),
        }
    }
}

fn visit_text<'de, V: Visitor<'de>>(text: Cow<'de, str>, visitor: V) -> Result<V::Value, Error> {
    match text {
        Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
        Cow::Owned(text) => visitor.visit_string(text),
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.whole(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            b'{' => self.object(None, visitor),
            b'[' => self.list(visitor),
            b'"' => visit_text(self.string()?, visitor),
            _ => match self.scalar()? {
                Scalar::Null => visitor.visit_unit(),
                Scalar::Bool(value) => visitor.visit_bool(value),
                Scalar::Number(text) => Reader::any_number(text, visitor),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            b't' | b'f' | b'n' => match self.scalar()? {
                Scalar::Bool(value) => visitor.visit_bool(value),
                _ => visitor.visit_bool(false),
            },
            _ => self.other("a boolean"),
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek()? == b'"' {
            return visit_text(self.string()?, visitor);
        }
        match self.null()? {
            true => visitor.visit_borrowed_str(""),
            false => self.other("a string"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.null()? {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            RAW => visitor.visit_borrowed_bytes(self.skip()?),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek()? == b'[' {
            return self.list(visitor);
        }
        match self.null()? {
            true => visitor.visit_seq(Nothing),
            false => self.other("a list"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek()? == b'{' {
            return self.object(None, visitor);
        }
        match self.null()? {
            true => visitor.visit_map(Nothing),
            false => self.other("an object"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.peek()? == b'{' {
            return self.object(Some(fields), visitor);
        }
        match self.null()? {
            true => visitor.visit_map(Nothing),
            false => self.other("an object"),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

/// What `null` has in it.
struct Nothing;

impl<'de> SeqAccess<'de> for Nothing {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        _seed: T,
    ) -> Result<Option<T::Value>, Error> {
        Ok(None)
    }
}

impl<'de> MapAccess<'de> for Nothing {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        _seed: K,
    ) -> Result<Option<K::Value>, Error> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _seed: V) -> Result<V::Value, Error> {
        Err(Error::new("a value is missing"))
    }
}

struct List<'a, 'de> {
    reader: &'a mut Reader<'de>,
    count: usize,
    ended: bool,
}

impl<'de> SeqAccess<'de> for &mut List<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.reader.take(b']')? {
            self.ended = true;
            return Ok(None);
        }
        if self.count > 0 {
            self.reader.expect(b',')?;
        }
        self.count += 1;
        self.reader.bounded(self.count)?;
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

/// The members of a type.
struct Members<'a, 'de> {
    reader: &'a mut Reader<'de>,
    fields: &'static [&'static str],
    seen: Vec<bool>,
    begun: bool,
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        loop {
            if self.reader.take(b'}')? {
                return Ok(None);
            }
            if self.begun {
                self.reader.expect(b',')?;
            }
            self.begun = true;
            let name = self.reader.name()?;
            let mut fields = self.fields.iter().zip(&mut self.seen);
            let Some((field, seen)) = fields.find(|(field, _)| is_same_name(field, &name)) else {
                self.reader.skip()?;
                continue;
            };
            if std::mem::replace(seen, true) {
                return Err(Error::new(format!("duplicate member \"{field}\"")));
            }
            if !self.reader.null()? {
                return seed.deserialize(StrDeserializer::new(field)).map(Some);
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}

/// A map, whose keys are all that there is to know of its form.
struct Map<'a, 'de> {
    reader: &'a mut Reader<'de>,
    keys: BTreeSet<Cow<'de, str>>,
}

impl<'de> MapAccess<'de> for Map<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if self.reader.take(b'}')? {
            return Ok(None);
        }
        if !self.keys.is_empty() {
            self.reader.expect(b',')?;
        }
        let key = self.reader.name()?;
        if !self.keys.insert(key.clone()) {
            let key: String = printable(&key).chars().take(100).collect();
            return Err(Error::new(format!("duplicate member {key:?}")));
        }
        self.reader.bounded(self.keys.len())?;
        match key {
            Cow::Borrowed(key) => seed.deserialize(BorrowedStrDeserializer::new(key)),
            Cow::Owned(key) => seed.deserialize(StringDeserializer::new(key)),
        }
        .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}
