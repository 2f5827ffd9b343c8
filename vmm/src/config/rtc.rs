//! `--rtc base=utc|localtime|DATE,clock=host|vm`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::ConfigError;
use super::props::Props;

/// What the real-time clock starts with and how it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcConfig {
    /// The time shown at start.
    pub base: RtcBase,
    /// The clock goes on while the machine is stopped.
    pub follows_host: bool,
}

/// The time that the real-time clock shows at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's time, UTC.
    Utc,
    /// The host's time in its time zone.
    Localtime,
    /// Seconds since 1970-01-01 00:00:00 UTC.
    At(i64),
}

impl RtcConfig {
    /// Reads the option's argument.
    ///
    /// # Errors
    /// When a value is not understood, or with `--icount` the clock would follow the host's.
    pub fn parse(text: &str, icount: bool) -> Result<Self, ConfigError> {
        let mut props = Props::with_implied_key("--rtc", text, "base");
        let base = match props.take("base").as_deref() {
            None | Some("" | "utc") => RtcBase::Utc,
            Some("localtime") => RtcBase::Localtime,
            Some(date) => RtcBase::At(parse_date(date).ok_or_else(|| {
                props.bad("base", date, "utc, localtime or a date such as 2026-11-23T15:47:00")
            })?),
        };
        let clock = props.take_choice("clock", &[("host", true), ("vm", false)])?;
        props.finish()?;
        if icount && clock == Some(true) {
            return Err(ConfigError::Conflict(
                "--icount has one clock, and --rtc clock=host another: leave out clock=host".into(),
            ));
        }
        let follows_host = clock.unwrap_or(!icount);
        Ok(Self { base, follows_host })
    }

    /// The time to show now, in nanoseconds since 1970 as the clock on the wall has it.
    pub fn start_nanos(&self) -> i128 {
        let now = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        match self.base {
            RtcBase::Utc => now,
            RtcBase::Localtime => now + i128::from(utc_offset(now)) * 1_000_000_000,
            RtcBase::At(seconds) => i128::from(seconds) * 1_000_000_000,
        }
    }
}

/// The time zone's offset from UTC in seconds at a moment in nanoseconds since 1970.
fn utc_offset(nanos: i128) -> i64 {
    let seconds = (nanos / 1_000_000_000) as libc::time_t;
    // SAFETY: a zeroed `tm` is valid; localtime_r writes to it only.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type.
    if unsafe { libc::localtime_r(&seconds, &mut tm) }.is_null() { 0 } else { tm.tm_gmtoff }
}

/// `YYYY-MM-DD[THH:MM:SS]` in seconds since 1970.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, separator| -> Option<Vec<i64>> {
        text.split(separator).map(|n| n.parse().ok().filter(|n| *n >= 0)).collect()
    };
    let (date, time) = (numbers(date, '-')?, numbers(time, ':')?);
    let (&[year, month, day], &[hour, minute, second]) = (&date[..], &time[..]) else {
        return None;
    };
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    in_range.then(|| {
        let days: i64 = (1970..year).map(|y| if is_leap(y) { 366 } else { 365 }).sum::<i64>()
            + (1..month).map(|m| days_in_month(year, m)).sum::<i64>()
            + day
            - 1;
        days * 86_400 + hour * 3600 + minute * 60 + second
    })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        assert_eq!(parse_date("1970-01-01"), Some(0));
        assert_eq!(parse_date("2000-02-29T12:00:00"), Some(951_825_600));
        assert_eq!(parse_date("2026-11-23T15:47:00"), Some(1_795_448_820));
        for text in
            ["2001-02-29", "2000-13-01", "2000-01-01T24:00:00", "x", "", "2000-01", "-1-1-1"]
        {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    #[test]
    fn the_option_has_defaults() {
        let rtc = RtcConfig::parse("", false).unwrap();
        assert_eq!(rtc, RtcConfig { base: RtcBase::Utc, follows_host: true });
        let rtc = RtcConfig::parse("base=2020-01-01,clock=vm", false).unwrap();
        assert_eq!(rtc.start_nanos(), 1_577_836_800_000_000_000);
        assert!(!rtc.follows_host);
        assert!(RtcConfig::parse("base=now", false).is_err());
        assert!(!RtcConfig::parse("", true).unwrap().follows_host);
        assert!(RtcConfig::parse("clock=host", true).is_err());
    }
}
