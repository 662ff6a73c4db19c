//! Canonical JSON, the form that TUF signs (OLPC canonical JSON, TUF 4.2.1).
//!
//! Strings stand as they were parsed: no Unicode normalisation (python-tuf does none), and only `"` and `\` escaped.

use serde_json::Value;

/// The only thing that JSON can say and canonical JSON cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it holds a number that is no 64-bit integer, and canonical JSON has no other")]
pub struct NotAnInteger;

/// The bytes that are signed for this value.
pub fn encode(value: &Value) -> Result<Vec<u8>, NotAnInteger> {
    let mut out = Vec::new();
    write(&mut out, value)?;
    Ok(out)
}

fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), NotAnInteger> {
    match value {
        Value::Null | Value::Bool(_) => out.extend(value.to_string().bytes()),
        // A float is refused, and so is what a parser turns into one: 1.0, 1e3, -0, 2^64.
        Value::Number(number) if number.is_u64() || number.is_i64() => out.extend(number.to_string().bytes()),
        Value::Number(_) => return Err(NotAnInteger),
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (n, item) in items.iter().enumerate() {
                out.extend((n > 0).then_some(b','));
                write(out, item)?;
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            // Sorted here, since a feature of serde_json may keep the order of the file.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (n, (name, value)) in fields.into_iter().enumerate() {
                out.extend((n > 0).then_some(b','));
                write_text(out, name);
                out.push(b':');
                write(out, value)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        out.extend((byte == b'"' || byte == b'\\').then_some(b'\\'));
        out.push(byte);
    }
    out.push(b'"');
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
