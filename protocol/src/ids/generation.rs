//! The number of a signed target, and the epoch it is counted in.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::IdError;
use super::limits::{MAX_EPOCH, MAX_NUMBER};

/// How often the root holders have restarted the numbers of all machines. It only rises. Documents name the
/// epoch they were signed in, and count only in that one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Epoch(u16);

impl Epoch {
    /// Up to it, a generation fits a signed 64-bit integer; see [`Generation::packed`].
    pub const MAX: Self = Self(MAX_EPOCH);

    /// Refuses numbers above [`Epoch::MAX`].
    pub fn new(number: u64) -> Result<Self, IdError> {
        let epoch = u16::try_from(number).map(Self).ok();
        epoch.filter(|epoch| *epoch <= Self::MAX).ok_or(IdError::Epoch(number))
    }
    /// The number; 0 for the first epoch.
    pub fn get(self) -> u64 {
        self.0.into()
    }
    /// Whether no root has begun another epoch yet.
    pub fn is_first(&self) -> bool {
        self.0 == 0
    }
    /// The following epoch; an error after [`Epoch::MAX`].
    pub fn next(self) -> Result<Self, IdError> {
        Self::new(self.get() + 1)
    }
}
impl TryFrom<u64> for Epoch {
    type Error = IdError;
    fn try_from(number: u64) -> Result<Self, IdError> {
        Self::new(number)
    }
}
impl From<Epoch> for u64 {
    fn from(epoch: Epoch) -> u64 {
        epoch.get()
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a signed target, counted from 1 for each machine and epoch, and never reused. A later
/// epoch comes after every number of an earlier one.
///
/// Written `7` in the first epoch, as before there were epochs, and `"2.7"` in epoch 2, so that a program
/// that knows no epochs fails to read it instead of taking it for another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    epoch: Epoch,
    number: u64,
}

impl Generation {
    /// The first generation of the first epoch.
    pub const FIRST: Self = Self { epoch: Epoch(0), number: 1 };
    /// Bits of the number in [`Generation::packed`].
    const BITS: u32 = 49;

    /// A generation of the first epoch.
    pub fn new(number: u64) -> Result<Self, IdError> {
        Self::of(Epoch::default(), number)
    }
    /// Refuses 0 and numbers above [`MAX_NUMBER`].
    pub fn of(epoch: Epoch, number: u64) -> Result<Self, IdError> {
        match number {
            0 => Err(IdError::Generation),
            1..=MAX_NUMBER => Ok(Self { epoch, number }),
            _ => Err(IdError::TooHigh(number)),
        }
    }
    /// The first generation of an epoch.
    pub fn first_of(epoch: Epoch) -> Self {
        Self { epoch, number: 1 }
    }
    /// The epoch it is counted in.
    pub fn epoch(self) -> Epoch {
        self.epoch
    }
    /// The number within its epoch.
    pub fn get(self) -> u64 {
        self.number
    }
    /// The one after it in the same epoch; an error after [`MAX_NUMBER`].
    pub fn next(self) -> Result<Self, IdError> {
        Self::of(self.epoch, self.number + 1)
    }
    /// One integer that sorts as generations do; in the first epoch it is the number itself. Databases
    /// store it.
    pub fn packed(self) -> i64 {
        // Both fit by construction.
        (i64::from(self.epoch.0) << Self::BITS) | i64::try_from(self.number).unwrap_or(i64::MAX)
    }
    /// The generation that [`Generation::packed`] gave this integer for.
    pub fn from_packed(packed: i64) -> Result<Self, IdError> {
        let packed = u64::try_from(packed).map_err(|_| IdError::Generation)?;
        Self::of(Epoch::new(packed >> Self::BITS)?, packed & ((1 << Self::BITS) - 1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch.is_first() {
            true => write!(f, "{}", self.number),
            false => write!(f, "{}.{}", self.epoch, self.number),
        }
    }
}

impl FromStr for Generation {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::NotAGeneration(text.chars().take(64).collect());
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse::<u64>().ok().filter(|_| plain).ok_or_else(bad)
        };
        match text.split_once('.') {
            Some((epoch, rest)) => Self::of(Epoch::new(number(epoch)?)?, number(rest)?),
            None if text == "0" => Err(IdError::Generation),
            None => Self::new(number(text)?),
        }
    }
}

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.epoch.is_first() {
            true => to.serialize_u64(self.number),
            false => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Generation;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a generation: NUMBER, or \"EPOCH.NUMBER\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Generation, E> {
                Generation::new(number).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Generation, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    fn generation(epoch: u64, number: u64) -> Generation {
        Generation::of(Epoch::new(epoch).unwrap(), number).unwrap()
    }

    #[test]
    fn generations_are_ordered_by_epoch_and_then_by_number_packed_or_not() {
        let highest = Epoch::MAX.get();
        let rising =
            [(0, 1), (0, 2), (0, MAX_NUMBER), (1, 1), (1, 9), (2, 1), (highest, 1), (highest, MAX_NUMBER)];
        let rising = rising.map(|(epoch, number)| generation(epoch, number));
        for pair in rising.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].packed() < pair[1].packed(), "{pair:?}");
        }
        for one in rising {
            assert_eq!(Generation::from_packed(one.packed()), Ok(one));
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(from_value::<Generation>(to_value(one).unwrap()).unwrap(), one);
        }
        assert_eq!(generation(0, 7).packed(), 7, "databases from before there were epochs hold the number");
        assert!(Generation::from_packed(-1).is_err() && Generation::from_packed(0).is_err());
    }

    #[test]
    fn the_first_epoch_is_written_as_it_was_before_there_were_epochs() {
        assert_eq!((json!(generation(0, 7)), json!(generation(2, 7))), (json!(7), json!("2.7")));
        assert_eq!(from_value::<Generation>(json!(7)).unwrap(), generation(0, 7));
        for bad in
            ["", ".", "1.", ".1", "0.1", "1.0", "01.1", "1.01", "1.1.1", "+1.1", "1.x", "-1", "16384.1", " 1"]
        {
            assert!(bad.parse::<Generation>().is_err(), "{bad}");
            assert!(from_value::<Generation>(json!(bad)).is_err(), "{bad}");
        }
        for bad in
            [json!(0), json!(-1), json!(1.5), json!(null), json!([1]), json!(MAX_NUMBER + 1), json!(u64::MAX)]
        {
            assert!(from_value::<Generation>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn counting_ends_at_the_cap_with_a_sentence_and_no_overflow() {
        let last = generation(3, MAX_NUMBER);
        assert_eq!(generation(3, MAX_NUMBER - 1).next(), Ok(last));
        assert_eq!(last.next(), Err(IdError::TooHigh(MAX_NUMBER + 1)));
        assert!(Generation::new(u64::MAX).unwrap_err().to_string().contains("muster keys new-epoch"));
        assert!(Epoch::MAX.next().is_err() && Epoch::new(u64::MAX).is_err());
        assert!(generation(1, 1) > generation(0, MAX_NUMBER));
    }
}
