//! Whether maintenance windows are open: a function of the windows, the time and the machine's time zone.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, ZonedDateTime};
use muster_protocol::clock::UnixMillis;
use muster_protocol::policy::{Day, TimeOfDay, Window};

/// How many days ahead to look for the next opening: a weekly window that opened today opens in seven days.
const DAYS_AHEAD: i64 = 8;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Openness {
    #[default]
    Open,
    Closed {
        why: String,
        opens: Option<UnixMillis>,
    },
}

impl Openness {
    pub fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// Whether one window of each list is open at `now`. `own` is the machine's time zone, for windows that name
/// none.
pub fn openness(lists: &[Vec<Window>], now: UnixMillis, own: &TimeZone) -> Openness {
    let Ok(at) = Timestamp::from_millisecond(now) else {
        return Openness::Closed { why: "the clock is not set: set it".to_owned(), opens: None };
    };
    let mut worst = Openness::Open;
    for list in lists {
        match (one_of(list, at, own), &mut worst) {
            (Openness::Open, _) => {}
            (closed, Openness::Open) => worst = closed,
            // If both are closed, the later one counts.
            (Openness::Closed { why, opens }, Openness::Closed { why: held, opens: latest }) => {
                if opens.is_none() || latest.is_some_and(|latest| opens > Some(latest)) {
                    (*held, *latest) = (why, opens);
                }
            }
        }
    }
    worst
}

fn one_of(list: &[Window], now: Timestamp, own: &TimeZone) -> Openness {
    let mut next: Option<ZonedDateTime> = None;
    let mut unknown = None;
    for window in list {
        let zone = match &window.zone {
            None => own.clone(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    unknown = Some(name);
                    continue;
                }
            },
        };
        let today = now.to_zoned_datetime(zone.clone()).date();
        for offset in -1..=DAYS_AHEAD {
            let Some((begins, ends)) = occurrence(window, today, offset, &zone) else { continue };
            if begins.timestamp() <= now && now < ends.timestamp() {
                return Openness::Open;
            }
            if begins.timestamp() > now && next.as_ref().is_none_or(|next| begins < *next) {
                next = Some(begins);
            }
        }
    }
    match (next, unknown) {
        (Some(next), _) => {
            let why = format!("outside its window, which opens {}", next.strftime("%a %F %H:%M %Z"));
            Openness::Closed { why, opens: Some(next.timestamp().as_millisecond()) }
        }
        (None, Some(zone)) => {
            let why = format!("this machine does not know the time zone {zone}: its window never opens");
            Openness::Closed { why, opens: None }
        }
        (None, None) => Openness::Closed { why: "its window never opens".to_owned(), opens: None },
    }
}

/// The window that opens `offset` days after `today`, if there is one on that day.
fn occurrence(
    window: &Window,
    today: Date,
    offset: i64,
    zone: &TimeZone,
) -> Option<(ZonedDateTime, ZonedDateTime)> {
    let day = today.checked_add(offset.days()).ok()?;
    if !window.days.is_empty() && !window.days.iter().any(|named| weekday(*named) == day.weekday()) {
        return None;
    }
    let last = if window.to > window.from { day } else { day.tomorrow().ok()? };
    // Skipped times count as an hour later, as in RFC 5545; of doubled ones the window opens at the first and
    // closes at the second.
    let begins = instant(day, window.from, zone, false)?;
    let ends = instant(last, window.to, zone, true)?;
    Some((begins, ends))
}

fn instant(day: Date, time: TimeOfDay, zone: &TimeZone, last: bool) -> Option<ZonedDateTime> {
    let (day, hour) = if time.hour() == 24 { (day.tomorrow().ok()?, 0) } else { (day, time.hour()) };
    let civil = day.at(i8::try_from(hour).ok()?, i8::try_from(time.minute()).ok()?, 0, 0);
    let choices = zone.to_ambiguous_zoned_datetime(civil);
    match choices.offset() {
        jiff::tz::AmbiguousOffset::Fold { .. } if last => choices.later().ok(),
        _ => choices.compatible().ok(),
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central Europe's rule in POSIX form, so that no test needs a time zone database.
    fn europe() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }
    fn window(days: &[Day], from: &str, to: &str) -> Window {
        Window { days: days.to_vec(), from: from.parse().unwrap(), to: to.parse().unwrap(), zone: None }
    }
    fn at(text: &str) -> UnixMillis {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }
    /// Whether it is open at this instant, or else when it opens.
    fn ask(window: &Window, instant: &str) -> Result<(), String> {
        match openness(&[vec![window.clone()]], at(instant), &europe()) {
            Openness::Open => Ok(()),
            Openness::Closed { opens, .. } => {
                Err(opens.map_or_else(String::new, |ms| Timestamp::from_millisecond(ms).unwrap().to_string()))
            }
        }
    }

    #[test]
    fn without_windows_it_is_always_open() {
        assert!(openness(&[], 0, &TimeZone::UTC).is_open());
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_to_the_one_before_its_last() {
        let lunch = window(&[], "12:00", "13:30");
        assert_eq!(ask(&lunch, "2026-01-15T10:59:59Z"), Err("2026-01-15T11:00:00Z".into()));
        assert_eq!(ask(&lunch, "2026-01-15T11:00:00Z"), Ok(()));
        assert_eq!(ask(&lunch, "2026-01-15T12:29:59Z"), Ok(()));
        assert_eq!(ask(&lunch, "2026-01-15T12:30:00Z"), Err("2026-01-16T11:00:00Z".into()));
        // In summer the same local hours are an hour earlier in UTC.
        assert_eq!(ask(&lunch, "2026-07-15T10:00:00Z"), Ok(()));
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_opens() {
        let night = window(&[Day::Sat], "22:00", "04:00");
        assert_eq!(ask(&night, "2026-01-17T21:00:00Z"), Ok(()), "Saturday evening");
        assert_eq!(ask(&night, "2026-01-18T02:59:00Z"), Ok(()), "Sunday morning");
        assert_eq!(ask(&night, "2026-01-18T03:00:00Z"), Err("2026-01-24T21:00:00Z".into()));
        assert_eq!(ask(&night, "2026-01-17T02:00:00Z"), Err("2026-01-17T21:00:00Z".into()), "Friday night");
        let whole = window(&[Day::Sun], "00:00", "24:00");
        assert_eq!(ask(&whole, "2026-01-18T22:59:59Z"), Ok(()));
        assert_eq!(ask(&whole, "2026-01-18T23:00:00Z"), Err("2026-01-24T23:00:00Z".into()));
    }

    #[test]
    fn in_spring_a_window_in_the_hour_that_is_skipped_opens_an_hour_later_and_is_not_lost() {
        // On 29 March 2026 the clocks go from 02:00 to 03:00, at 01:00 UTC.
        let short = window(&[], "02:15", "02:45");
        assert_eq!(ask(&short, "2026-03-29T01:14:59Z"), Err("2026-03-29T01:15:00Z".into()));
        assert_eq!(ask(&short, "2026-03-29T01:15:00Z"), Ok(()));
        assert_eq!(ask(&short, "2026-03-29T01:45:00Z"), Err("2026-03-30T00:15:00Z".into()));
        // A window across the change is an hour shorter.
        let long = window(&[], "01:00", "04:00");
        assert_eq!(ask(&long, "2026-03-29T00:00:00Z"), Ok(()));
        assert_eq!(ask(&long, "2026-03-29T01:59:59Z"), Ok(()));
        assert_eq!(ask(&long, "2026-03-29T02:00:00Z"), Err("2026-03-29T23:00:00Z".into()));
    }

    #[test]
    fn in_autumn_a_window_in_the_hour_that_comes_twice_begins_with_the_first_and_ends_with_the_second() {
        // On 25 October 2026 the clocks go from 03:00 to 02:00, at 01:00 UTC.
        let short = window(&[], "02:15", "02:45");
        assert_eq!(ask(&short, "2026-10-25T00:14:59Z"), Err("2026-10-25T00:15:00Z".into()));
        for instant in ["2026-10-25T00:15:00Z", "2026-10-25T00:50:00Z", "2026-10-25T01:44:59Z"] {
            assert_eq!(ask(&short, instant), Ok(()), "{instant}");
        }
        assert_eq!(ask(&short, "2026-10-25T01:45:00Z"), Err("2026-10-26T01:15:00Z".into()));
    }

    #[test]
    fn one_window_of_each_list_must_be_open_and_the_later_one_is_waited_for() {
        let (early, late) = (window(&[], "08:00", "10:00"), window(&[], "09:00", "11:00"));
        let open = |lists: &[Vec<Window>], instant: &str| openness(lists, at(instant), &TimeZone::UTC);
        let either = [vec![early.clone(), late.clone()]];
        let both = [vec![early], vec![late]];
        assert!(open(&either, "2026-01-15T08:30:00Z").is_open());
        assert!(open(&both, "2026-01-15T09:30:00Z").is_open());
        let Openness::Closed { opens, .. } = open(&both, "2026-01-15T07:30:00Z") else { panic!("closed") };
        assert_eq!(opens, Some(at("2026-01-15T09:00:00Z")));
        let Openness::Closed { opens, .. } = open(&both, "2026-01-15T10:30:00Z") else { panic!("closed") };
        assert_eq!(opens, Some(at("2026-01-16T08:00:00Z")));
    }

    #[test]
    fn a_window_in_a_zone_that_nobody_knows_never_opens_and_says_so() {
        let mars = Window { zone: Some("Mars/Olympus".into()), ..window(&[], "00:00", "24:00") };
        let closed = openness(&[vec![mars.clone()]], 0, &TimeZone::UTC);
        assert!(matches!(closed, Openness::Closed { why, opens: None } if why.contains("Mars/Olympus")));
        // Next to a known zone it changes nothing.
        assert!(openness(&[vec![mars, window(&[], "00:00", "24:00")]], 0, &TimeZone::UTC).is_open());
    }
}
