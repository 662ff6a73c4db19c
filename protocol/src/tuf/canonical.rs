//! Canonical JSON, the form that TUF signs (OLPC canonical JSON, TUF 4.2.1).
//!
//! Strings stay as they were parsed: there is no Unicode normalisation (python-tuf does none either), and
//! only `"` and `\` are escaped.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The only thing that JSON can express and canonical JSON cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it holds a number that is not a 64-bit integer, and canonical JSON has no other")]
pub struct NotAnInteger;

/// The bytes that are signed for this value.
pub fn encode(value: &Value) -> Result<Vec<u8>, NotAnInteger> {
    Ok(match value {
        Value::Null | Value::Bool(_) => value.to_string().into_bytes(),
        // Refuses floats, and what a parser turns into one: 1.0, 1e3, -0, 2^64.
        Value::Number(number) if number.is_u64() || number.is_i64() => number.to_string().into_bytes(),
        Value::Number(_) => return Err(NotAnInteger),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items = items.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
            [b"[", items.join(&b',').as_slice(), b"]"].concat()
        }
        Value::Object(fields) => {
            // Sorted here, since a feature of serde_json may keep the file's order.
            let fields: BTreeMap<_, _> = fields.iter().collect();
            let field = |(name, value): (&String, _)| Ok([quoted(name), encode(value)?].join(&b':'));
            let fields = fields.into_iter().map(field).collect::<Result<Vec<_>, _>>()?;
            [b"{", fields.join(&b',').as_slice(), b"}"].concat()
        }
    })
}

fn quoted(text: &str) -> Vec<u8> {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")).into_bytes()
}

/// Reads a value that means the same to every reader. [`Value`] itself differs from other readers: of a
/// name that appears twice in an object it keeps the last, and features of serde_json give some names a
/// special meaning.
pub(super) fn strict<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
    Strict.deserialize(from)
}

#[derive(Clone, Copy)]
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of canonical JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }
    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Err(E::custom(NotAnInteger))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.insert(name.clone(), fields.next_value_seed(self)?).is_some() {
                return Err(A::Error::custom(format_args!("'{name}' appears twice in one object")));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> Result<String, NotAnInteger> {
        encode(&serde_json::from_str(json).unwrap()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn fields_are_sorted_and_space_is_gone() {
        assert_eq!(
            canonical(r#" { "b" : [ 1 , -2, true, null ], "a" : { "d":false , "c": {} } } "#).unwrap(),
            r#"{"a":{"c":{},"d":false},"b":[1,-2,true,null]}"#
        );
        assert_eq!(canonical(r#"{"é":1,"z":2,"Z":3}"#).unwrap(), r#"{"Z":3,"z":2,"é":1}"#);
    }

    #[test]
    fn only_quotes_and_backslashes_are_escaped() {
        assert_eq!(canonical(r#""a\"b\\c\n\u0001\u00e9\/""#).unwrap(), "\"a\\\"b\\\\c\n\u{1}é/\"");
        // e and a combining accent stay two characters.
        assert_eq!(canonical("\"e\u{301}\"").unwrap(), "\"e\u{301}\"");
    }

    #[test]
    fn the_whole_range_of_integers_stands_as_written() {
        for number in ["0", "18446744073709551615", "-9223372036854775808"] {
            assert_eq!(canonical(number).unwrap(), number);
        }
    }

    #[test]
    fn floats_are_refused_wherever_they_stand() {
        for json in ["1.0", "1e3", "-0", "18446744073709551616", r#"{"a":[0.5]}"#] {
            assert_eq!(canonical(json), Err(NotAnInteger), "{json}");
        }
    }
}
