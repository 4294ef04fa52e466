//! `strftime` for templates that tell the model today's date.

use std::time::{SystemTime, UNIX_EPOCH};

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

/// Formats a time in UTC as C does in its own locale; otherwise the directive that is not known.
pub(super) fn strftime(time: SystemTime, format: &str) -> Result<String, char> {
    let secs = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = secs / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let weekday = DAYS[((days + 4) % 7) as usize];
    let name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next().unwrap_or('%') {
            'd' => format!("{day:02}"),
            'm' => format!("{month:02}"),
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'B' => name.to_owned(),
            'b' => name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            '%' => "%".to_owned(),
            other => return Err(other),
        };
    }
    Ok(out)
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |secs, format| strftime(UNIX_EPOCH + Duration::from_secs(secs), format);
        assert_eq!(at(0, "%a %d %b %Y").as_deref(), Ok("Thu 01 Jan 1970"));
        assert_eq!(
            at(951_782_400 + 3661, "%A, %d %B %y %H:%M:%S %%").as_deref(),
            Ok("Tuesday, 29 February 00 01:01:01 %")
        );
        assert_eq!(at(1_735_689_599, "%Y-%m-%d").as_deref(), Ok("2024-12-31"));
        assert_eq!(at(4_102_444_800, "%Y-%m-%d").as_deref(), Ok("2100-01-01"));
        assert_eq!(at(0, "%Q"), Err('Q'));
    }
}
