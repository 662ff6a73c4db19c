//! Bounds for what comes over the network unsigned. A field names the function that deserialises it, so a
//! value of that type is within its bounds, and no code that adds, multiplies or stores it has to check
//! again.
//!
//! A number that only says how long or how far is clamped. A text or a list that is too long comes from no
//! honest sender, and the document that holds it is refused.

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, SeqAccess, Visitor};

use crate::clock::UnixMillis;

/// The beginning of year 1 and the end of year 9999, in Unix milliseconds: what calendars can show.
const FIRST_MS: UnixMillis = -62_135_596_800_000;
const LAST_MS: UnixMillis = 253_402_300_799_999;

/// A number, clamped to `LEAST..=MOST`.
pub fn number<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    from: D,
) -> Result<u64, D::Error> {
    u64::deserialize(from).map(|number| number.clamp(LEAST, MOST))
}

/// A time in Unix milliseconds, clamped to what a calendar can show.
pub fn time<'de, D: Deserializer<'de>>(from: D) -> Result<UnixMillis, D::Error> {
    UnixMillis::deserialize(from).map(shown)
}

/// Like [`time`], for an optional field.
pub fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<UnixMillis>, D::Error> {
    Option::<UnixMillis>::deserialize(from).map(|time| time.map(shown))
}

/// A time in Unix seconds, clamped to what a calendar can show.
pub fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    i64::deserialize(from).map(|time| time.clamp(FIRST_MS / 1000, LAST_MS / 1000))
}

fn shown(time: UnixMillis) -> UnixMillis {
    time.clamp(FIRST_MS, LAST_MS)
}

/// A text of at most `MOST` bytes; a longer one is an error.
pub fn text<'de, D: Deserializer<'de>, const MOST: usize>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > MOST {
        return Err(D::Error::custom(format_args!(
            "a text of {} bytes, and {MOST} are the most",
            text.len()
        )));
    }
    Ok(text)
}

/// A text for people, cut to its first `MOST` bytes at a character boundary.
pub fn truncated<'de, D: Deserializer<'de>, const MOST: usize>(from: D) -> Result<String, D::Error> {
    let mut text = String::deserialize(from)?;
    text.truncate(text.floor_char_boundary(MOST));
    Ok(text)
}

/// Like [`truncated`], for an optional field.
pub fn some_truncated<'de, D: Deserializer<'de>, const MOST: usize>(
    from: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.map(|mut text| {
        text.truncate(text.floor_char_boundary(MOST));
        text
    }))
}

/// A document that is not needed: `None` where it is not of its form.
pub fn if_well_formed<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    serde_json::Value::deserialize(from).map(|value| serde_json::from_value(value).ok())
}

/// A list of at most `MOST` entries; a longer one is refused before the rest is read.
pub fn list<'de, D, T, const MOST: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MOST: usize>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if list.len() == MOST {
                    return Err(A::Error::custom(format_args!("a list of more than {MOST}")));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }
    from.deserialize_seq(List::<T, MOST>(std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Bounded {
        #[serde(deserialize_with = "super::number::<_, 1, 600>")]
        number: u64,
        #[serde(deserialize_with = "super::time")]
        time: i64,
        #[serde(default, deserialize_with = "super::some_time")]
        some_time: Option<i64>,
        #[serde(deserialize_with = "super::text::<_, 4>")]
        text: String,
        #[serde(deserialize_with = "super::truncated::<_, 4>")]
        note: String,
        #[serde(deserialize_with = "super::list::<_, _, 2>")]
        list: Vec<u8>,
        #[serde(default, deserialize_with = "super::if_well_formed")]
        extra: Option<Vec<u8>>,
    }

    fn read(document: &str) -> Result<Bounded, serde_json::Error> {
        serde_json::from_str(document)
    }

    #[test]
    fn numbers_and_words_are_moved_into_their_bounds() {
        let document = r#"{"number":18446744073709551615,"time":-9223372036854775808,
            "some_time":9223372036854775807,"text":"abcd","note":"abc\u00e9\u00e9","list":[1,2]}"#;
        let read = read(document).unwrap();
        assert_eq!((read.number, read.time, read.some_time), (600, super::FIRST_MS, Some(super::LAST_MS)));
        assert_eq!((read.text.as_str(), read.note.as_str(), read.list.len()), ("abcd", "abc", 2));
    }

    #[test]
    fn what_is_not_needed_and_not_of_its_form_counts_as_not_sent() {
        let with = |extra: &str| {
            read(&format!(r#"{{"number":0,"time":0,"text":"","note":"","list":[]{extra}}}"#)).unwrap().extra
        };
        assert_eq!((with(""), with(r#","extra":[1]"#)), (None, Some(vec![1])));
        for odd in ["null", "7", "{}", "[1,\"two\"]", "[300]"] {
            assert_eq!(with(&format!(r#","extra":{odd}"#)), None, "{odd}");
        }
    }

    #[test]
    fn a_text_or_a_list_that_is_too_long_is_refused_and_so_is_what_is_no_number() {
        let good = r#"{"number":0,"time":0,"text":"","note":"","list":[]}"#;
        assert_eq!(read(good).unwrap().number, 1);
        for (from, to) in [
            ("\"text\":\"\"", "\"text\":\"abcde\""),
            ("\"list\":[]", "\"list\":[1,2,3]"),
            ("\"number\":0", "\"number\":-1"),
            ("\"number\":0", "\"number\":1e30"),
            ("\"number\":0", "\"number\":18446744073709551616"),
            ("\"time\":0", "\"time\":\"noon\""),
        ] {
            assert!(read(&good.replace(from, to)).is_err(), "{to}");
        }
    }
}
