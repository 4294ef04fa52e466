//! `strftime` for templates that tell the model today's date, and the date that a run keeps.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A day, written `2026-11-30`. A run that renders a template which asks for the date fixes one and keeps it, so that all its prompts
/// agree, those after a resumption among them.
///
/// # Example
/// ```
/// use ruminate_datasets::chat::{ChatTemplate, Date, JinjaTemplate};
/// let template = JinjaTemplate::new("Today is {{ strftime_now('%d %B %Y') }}.", &[])?;
/// let date = "2026-11-30".parse::<Date>()?;
/// let template = ChatTemplate::from(template).on(date);
/// assert_eq!(template.prompt(&[])?, "Today is 30 November 2026.");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// Days since 1970-01-01.
    days: u64,
}

impl Date {
    /// The present day, in UTC.
    #[must_use]
    pub fn today() -> Self {
        Self { days: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400 }
    }

    /// Its first second.
    #[must_use]
    pub fn start(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.days * 86_400)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.days);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no date such as 2026-11-30, from 1970 to 9999");
        let mut numbers = text.split('-').map(|part| part.parse::<u64>().ok());
        let (Some(Some(year)), Some(Some(month)), Some(Some(day)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(bad());
        };
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return Err(bad());
        }
        let days = first_of(year)
            + (0..366).find(|&n| civil(first_of(year) + n) == (year, month, day)).ok_or_else(bad)?;
        Ok(Self { days })
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Formats a time in UTC as Python does on Linux in C's own locale: without a time zone, and with directives that nobody knows as they
/// are. Flags of the GNU C library stand between the percent sign and the directive.
pub(super) fn strftime(time: SystemTime, format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let flags: String =
            rest[1..].chars().take_while(|c| matches!(c, '-' | '_' | '0' | '^' | '#')).collect();
        let mut after = rest[1 + flags.len()..].chars();
        let directive = after.next();
        match directive.and_then(|directive| field(time, directive)) {
            Some(text) => out.push_str(&flagged(text, &flags)),
            None => out.push_str(&rest[..rest.len() - after.as_str().len()]),
        }
        rest = after.as_str();
    }
    out.push_str(rest);
    out
}

/// A text, or a number with its width and what fills it.
enum Field {
    Text(String),
    Number(u64, usize, char),
}

fn flagged(field: Field, flags: &str) -> String {
    match field {
        Field::Text(text) if flags.contains('^') => text.to_uppercase(),
        Field::Text(text) => text,
        Field::Number(number, width, fill) => {
            let (width, fill) = match flags.chars().rfind(|c| matches!(c, '-' | '_' | '0')) {
                Some('-') => (0, fill),
                Some('_') => (width, ' '),
                Some(_) => (width, '0'),
                None => (width, fill),
            };
            let digits = number.to_string();
            let filling = width.saturating_sub(digits.len());
            std::iter::repeat_n(fill, filling).collect::<String>() + &digits
        }
    }
}

fn field(time: SystemTime, directive: char) -> Option<Field> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = since.as_secs();
    let days = secs / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let weekday = (days + 4) % 7;
    let name = DAYS[weekday as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let day_of_year = days - first_of(year);
    let hour12 = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let (iso_year, iso_week) = iso_week(days);
    let text = |text: &str| Some(Field::Text(text.to_owned()));
    let several = |format: &str| Some(Field::Text(strftime(time, format)));
    let number = |number, width| Some(Field::Number(number, width, '0'));
    match directive {
        'a' => text(&name[..3]),
        'A' => text(name),
        'b' | 'h' => text(&month_name[..3]),
        'B' => text(month_name),
        'c' => several("%a %b %e %H:%M:%S %Y"),
        'C' => number(year / 100, 2),
        'd' => number(day, 2),
        'D' | 'x' => several("%m/%d/%y"),
        'e' => Some(Field::Number(day, 2, ' ')),
        'f' => number(u64::from(since.subsec_micros()), 6),
        'F' => several("%Y-%m-%d"),
        'g' => number(iso_year % 100, 2),
        'G' => number(iso_year, 1),
        'H' => number(hour, 2),
        'I' => number(hour12, 2),
        'j' => number(day_of_year + 1, 3),
        'k' => Some(Field::Number(hour, 2, ' ')),
        'l' => Some(Field::Number(hour12, 2, ' ')),
        'm' => number(month, 2),
        'M' => number(minute, 2),
        'n' => text("\n"),
        'p' => text(half),
        'P' => text(&half.to_lowercase()),
        'r' => several("%I:%M:%S %p"),
        'R' => several("%H:%M"),
        's' => number(secs, 1),
        'S' => number(second, 2),
        't' => text("\t"),
        'T' | 'X' => several("%H:%M:%S"),
        'u' => number((weekday + 6) % 7 + 1, 1),
        'U' => number((day_of_year + 7 - weekday) / 7, 2),
        'V' => number(iso_week, 2),
        'w' => number(weekday, 1),
        'W' => number((day_of_year + 7 - (weekday + 6) % 7) / 7, 2),
        'y' => number(year % 100, 2),
        'Y' => number(year, 1),
        'z' | 'Z' => text(""),
        '%' => text("%"),
        _ => None,
    }
}

/// Year and week by ISO 8601: a week belongs to the year that holds its Thursday.
fn iso_week(days: u64) -> (u64, u64) {
    // 1970-01-01 was a Thursday.
    let from_monday = (days + 3) % 7;
    let thursday = days + 3 - from_monday;
    let (year, ..) = civil(thursday);
    (year, (thursday - first_of(year)) / 7 + 1)
}

/// The first day of a year, as days since 1970.
fn first_of(year: u64) -> u64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of a day since 1970, by counting months from March so that leap days come last
/// (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |secs, format| strftime(UNIX_EPOCH + Duration::from_secs(secs), format);
        assert_eq!(at(0, "%a %d %b %Y"), "Thu 01 Jan 1970");
        assert_eq!(at(951_782_400 + 3661, "%A, %d %B %y %H:%M:%S %%"), "Tuesday, 29 February 00 01:01:01 %");
        assert_eq!(at(1_735_689_599, "%Y-%m-%d"), "2024-12-31");
        assert_eq!(at(4_102_444_800, "%Y-%m-%d"), "2100-01-01");
        // As Python 3.11 writes them on Linux: 2024-01-07 15:04:05, a Sunday.
        let sunday = 1_704_639_845;
        for (format, text) in [
            ("%j %-d %I %F %e %U", "007 7 03 2024-01-07  7 01"),
            ("%W %V %G %g %u %w", "01 01 2024 24 7 0"),
            ("%D %T %R %r %p %P", "01/07/24 15:04:05 15:04 03:04:05 PM PM pm"),
            ("%c|%x|%X|%h|%C", "Sun Jan  7 15:04:05 2024|01/07/24|15:04:05|Jan|20"),
            ("%-m/%_d/%-I %^a %k %l", "1/ 7/3 SUN 15  3"),
            ("%f%z%Z%n%t%s", "000000\n\t1704639845"),
            ("%Q %", "%Q %"),
            ("é%", "é%"),
        ] {
            assert_eq!(at(sunday, format), text, "{format}");
        }
        assert_eq!(at(1_609_459_200, "%G-W%V-%u %U %W"), "2020-W53-5 00 00");
    }

    #[test]
    fn days_are_written_and_read() {
        for text in ["1970-01-01", "2000-02-29", "2026-11-30", "9999-12-31"] {
            let date: Date = text.parse().unwrap();
            assert_eq!(date.to_string(), text);
            assert_eq!(strftime(date.start(), "%F %T"), format!("{text} 00:00:00"));
            assert_eq!(serde_json::from_value::<Date>(serde_json::json!(text)).unwrap(), date);
        }
        for text in ["", "2026", "2026-02-29", "1969-12-31", "2026-13-01", "2026-11-30T00", "2026-11-30-1"] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        assert!(Date::today().start() <= SystemTime::now());
    }
}
