//! Days and dates of the proleptic Gregorian calendar.

/// Seconds in a day.
pub const DAY: i64 = 86_400;

/// Days in 400 years, after which the calendar repeats itself.
const ERA: i64 = 146_097;

/// Days from 1970-01-01 to a date; negative before it. `day` may lie outside its month.
///
/// `month` counts from 1 to 12.
pub const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // A year that begins in March has its leap day at the end, and five months from March or from
    // August on have 153 days.
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    era * ERA + day_of_era - 719_468
}

/// Year, month (1 to 12) and day (1 to 31) of the day that is `days` after 1970-01-01.
pub const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(ERA);
    let day_of_era = days.rem_euclid(ERA);
    // Take off the leap days before this one; what is left are years of 365 days.
    let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / (ERA - 1);
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// The day of the week, 0 (Sunday) to 6, of the day that is `days` after 1970-01-01, a Thursday.
pub const fn weekday_from_days(days: i64) -> i64 {
    (days + 4).rem_euclid(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (date, days, weekday) in [
            ((1970, 1, 1), 0, 4),
            ((1969, 12, 31), -1, 3),
            ((2000, 2, 29), 11_016, 2),
            ((2000, 3, 1), 11_017, 3),
            ((2026, 11, 23), 20_780, 1),
            ((2038, 1, 19), 24_855, 2),
            ((2100, 3, 1), 47_541, 1),
            ((0, 1, 1), -719_528, 6),
        ] {
            let (year, month, day) = date;
            assert_eq!(days_from_civil(year, month, day), days, "{date:?}");
            assert_eq!(civil_from_days(days), date);
            assert_eq!(weekday_from_days(days), weekday, "{date:?}");
        }
    }

    #[test]
    fn each_day_of_800_years_follows_the_one_before() {
        let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let (mut year, mut month, mut day) = (1600, 1, 1);
        let first = days_from_civil(year, month, day);
        for days in first..first + 2 * ERA {
            assert_eq!(civil_from_days(days), (year, month, day));
            assert_eq!(days_from_civil(year, month, day), days);
            let length = match month {
                2 => 28 + i64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (2400, 1, 1));
    }

    #[test]
    fn a_day_beyond_its_month_falls_into_the_next() {
        assert_eq!(days_from_civil(2023, 2, 31), days_from_civil(2023, 3, 3));
    }
}
