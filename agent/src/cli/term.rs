//! Lengths of time on the command line.

use jiff::SignedDuration;

use crate::control::messages::{LONGEST_BYPASS, LONGEST_TRIAL};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// As long as an exemption may ever be.
const LONGEST: u64 = (3650 * DAY).unsigned_abs();

/// Reads a number and a unit: `90s`, `30m`, `12h`, `7d`, `2w`.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn term(text: &str) -> Result<SignedDuration, String> {
    up_to(LONGEST, "3650d", text)
}

/// The same for a bypass.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn of_bypass(text: &str) -> Result<SignedDuration, String> {
    up_to(LONGEST_BYPASS, "24h", text)
}

/// The same for a trial.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn of_trial(text: &str) -> Result<SignedDuration, String> {
    up_to(LONGEST_TRIAL, "7d", text)
}

/// Of `longest` seconds at most, which people write as `limit`.
fn up_to(longest: u64, limit: &str, text: &str) -> Result<SignedDuration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return Err("write a number and a unit: 90s, 30m, 12h, 7d, 2w".to_owned()),
    };
    let seconds = number.parse::<i64>().ok();
    match seconds.and_then(|seconds| seconds.checked_mul(scale)) {
        Some(seconds @ 1..) if seconds.unsigned_abs() <= longest => {
            Ok(SignedDuration::from_secs(seconds))
        }
        Some(_) | None => Err(format!(
            "write a number from 1 on, and no more than {limit}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn term_is_a_number_and_a_unit() {
        let seconds = |text| term(text).map(|term| term.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("30m"), Ok(1800));
        assert_eq!(seconds("12h"), Ok(43_200));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(seconds("2w"), Ok(1_209_600));
        assert_eq!(seconds("3650d"), Ok(315_360_000));
    }

    #[test]
    fn term_is_as_long_as_what_it_is_for_may_last() {
        let seconds = |read: fn(&str) -> Result<SignedDuration, String>, text| {
            read(text).map(|term| term.as_secs().unsigned_abs())
        };
        assert_eq!(seconds(of_bypass, "24h"), Ok(LONGEST_BYPASS));
        assert_eq!(seconds(of_trial, "7d"), Ok(LONGEST_TRIAL));
        for (read, text, limit) in [
            (of_bypass as fn(&str) -> _, "86401s", "24h"),
            (of_trial, "604801s", "7d"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.ends_with(limit), "{refused}");
        }
    }

    #[test]
    fn term_of_anything_else_is_refused() {
        for text in [
            "", "7", "d", "0d", "-1d", "1.5h", "7 d", "7D", "3651d", "1y",
        ] {
            assert!(term(text).is_err(), "{text}");
        }
        assert!(term("99999999999999999999d").is_err());
        assert!(term("9999999999999999w").is_err());
    }
}
