//! Times as people write them: `2h`, `15m`, `1h30m`.

/// Seconds; `None` if it is no time.
pub fn parse(text: &str) -> Option<u64> {
    let (mut seconds, mut digits) = (0_u64, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let unit = match letter {
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        let number: u64 = std::mem::take(&mut digits).parse().ok()?;
        seconds = number.checked_mul(unit)?.checked_add(seconds)?;
    }
    (digits.is_empty() && !text.is_empty()).then_some(seconds)
}

/// The same in the other direction, in the largest units.
pub fn shown(seconds: u64) -> String {
    let mut left = seconds;
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if left >= size {
            text.push_str(&format!("{}{unit}", left / size));
            left %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, seconds) in [("2h", 7200), ("15m", 900), ("1h30m", 5400), ("1d", 86_400), ("0s", 0)] {
            assert_eq!(parse(text), Some(seconds));
            assert_eq!(shown(seconds), text);
        }
        for wrong in ["", "2", "h", "2 h", "1w", "-1h", "99999999999999999999d", "9999999999999999d", "1.5h"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
