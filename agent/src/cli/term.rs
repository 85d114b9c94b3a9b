//! Lengths of time on the command line.

use jiff::SignedDuration;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// As long as an exemption may ever be.
const LONGEST: i64 = 3650 * DAY;

/// Reads a number and a unit: `90s`, `30m`, `12h`, `7d`, `2w`.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn term(text: &str) -> Result<SignedDuration, String> {
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
        Some(seconds @ 1..=LONGEST) => Ok(SignedDuration::from_secs(seconds)),
        Some(_) | None => Err("write a number from 1 on, and no more than 3650d".to_owned()),
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
