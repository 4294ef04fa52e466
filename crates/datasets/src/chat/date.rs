//! `strftime` for templates that tell the model today's date, and the date that a run keeps.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::Offset;
use jiff::{Timestamp, civil};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
pub struct Date(civil::Date);

impl Date {
    /// The present day, in UTC.
    #[must_use]
    pub fn today() -> Self {
        Self(Offset::UTC.to_datetime(Timestamp::now()).date())
    }

    /// Its first second.
    #[must_use]
    pub fn start(self) -> SystemTime {
        let start = Offset::UTC.to_timestamp(self.0.to_datetime(civil::Time::midnight()));
        start.and_then(SystemTime::try_from).unwrap_or(UNIX_EPOCH)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // On the last day that a civil date can be, no timestamp is.
        match civil::Date::strptime("%Y-%m-%d", text) {
            Ok(date) if (1970..9999).contains(&date.year()) => Ok(Self(date)),
            _ => Err(format!("`{text}` is no date such as 2026-11-30, from 1970 to 9998")),
        }
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
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let time = BrokenDownTime::from(Timestamp::try_from(time).unwrap_or_default());
    let format = directives(format);
    time.to_string_with_config(&config, &format).unwrap_or(format)
}

/// Writes a format of Python with the directives of jiff, which has some more and reads `%f` otherwise.
fn directives(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('%', Some('z' | 'Z')) => {}
            ('%', Some('f')) => out.push_str("%6f"),
            ('%', Some(more @ ('N' | 'Q' | 'q' | ':' | '.'))) => out.extend(['%', '%', more]),
            ('%', Some(known)) => out.extend(['%', known]),
            _ => {
                out.push(c);
                continue;
            }
        }
        rest.next();
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            ("%Q %N %q %:z %", "%Q %N %q %:z %"),
            ("é%", "é%"),
        ] {
            assert_eq!(at(sunday, format), text, "{format}");
        }
        assert_eq!(at(1_609_459_200, "%G-W%V-%u %U %W"), "2020-W53-5 00 00");
    }

    #[test]
    fn days_are_written_and_read() {
        for text in ["1970-01-01", "2000-02-29", "2026-11-30", "9998-12-31"] {
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
