//! Reads TOML values for a type, with errors that are data.
//!
//! Which fields and variants there are, serde tells the error type as lists; the one of `toml` keeps a sentence only.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

/// Complaint of a type about a value that it does not take.
#[derive(Debug)]
pub(super) enum Complaint {
    UnknownField {
        field: String,
        known: &'static [&'static str],
    },
    UnknownVariant {
        variant: String,
        known: &'static [&'static str],
    },
    MissingField(&'static str),
    /// A string was wanted; the message.
    NotString(String),
    Other(String),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField { field, .. } => write!(f, "unknown field `{field}`"),
            Self::UnknownVariant { variant, known } => {
                write!(f, "unknown variant `{variant}`, expected one of `{}`", known.join("`, `"))
            }
            Self::MissingField(field) => write!(f, "missing field `{field}`"),
            Self::NotString(message) | Self::Other(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Complaint {}

impl de::Error for Complaint {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        // A struct with flattened parts tells of unknown fields by a sentence alone.
        match message.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix('`')) {
            Some(field) => Self::UnknownField { field: field.to_owned(), known: &[] },
            None => Self::Other(message),
        }
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownField { field: field.to_owned(), known }
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownVariant { variant: variant.to_owned(), known }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field)
    }
}

/// A value to be read.
pub(super) struct Node(pub(super) Value);

impl Node {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.0 {
            Value::String(text) => Unexpected::Str(text),
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::Boolean(value) => Unexpected::Bool(*value),
            Value::Datetime(_) => Unexpected::Other("date or time"),
            Value::Array(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
    }
}

type Entries = std::iter::Map<toml::map::IntoIter<String, Value>, fn((String, Value)) -> (String, Node)>;

fn entries<'de>(table: Table) -> MapDeserializer<'de, Entries, Complaint> {
    let entry: fn((String, Value)) -> (String, Node) = |(key, value)| (key, Node(value));
    MapDeserializer::new(table.into_iter().map(entry))
}

impl<'de> IntoDeserializer<'de, Complaint> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = Complaint;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(value) => visitor.visit_bool(value),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Node));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Table(table) => {
                let mut entries = entries(table);
                let value = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(value)
            }
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            _ => {
                let error: Complaint = de::Error::invalid_type(self.unexpected(), &"a string");
                Err(Complaint::NotString(error.to_string()))
            }
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Complaint> {
        visitor.visit_newtype_struct(self)
    }

    /// A variant without settings may be written as a table, too.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        match &self.0 {
            Value::Table(table) if table.is_empty() => visitor.visit_unit(),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Complaint> {
        match self.0 {
            Value::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            Value::Table(table) if table.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(entries(table)))
            }
            Value::Table(table) => {
                let keys: Vec<&str> = table.keys().map(String::as_str).collect();
                Err(de::Error::custom(format!("expected one variant, found {keys:?}")))
            }
            _ => Err(de::Error::invalid_type(
                self.unexpected(),
                &"a variant: a string, or a table with one key",
            )),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit_struct seq tuple tuple_struct map
        struct identifier ignored_any
    }
}
