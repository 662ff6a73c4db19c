//! Numbers of things, in words.

use std::fmt::Display;

/// `1 entry`, `2 entries`.
pub fn count<N: Display + PartialEq + From<u8> + Copy>(number: N, one: &str, many: &str) -> String {
    let noun = if number == N::from(1) { one } else { many };
    format!("{number} {noun}")
}

/// Reads a number of an option that counts from 1.
pub fn from_one(text: &str) -> Result<u64, &'static str> {
    text.parse().ok().filter(|number| *number > 0).ok_or("write a whole number from 1 on")
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn one_is_singular_and_every_other_number_is_plural() {
        let of = |number: u32| count(number, "entry", "entries");
        assert_eq!([of(0), of(1), of(2)], ["0 entries", "1 entry", "2 entries"]);
    }
}
