//! Times in the format that podman accepts.

/// Returns whether `text` is a time in the format of RFC 3339 that all versions of podman accept.
pub(super) fn is_time(text: &str) -> bool {
    let Some((date, rest)) = text.split_once('T') else { return false };
    let Some(zone) = rest.find(['Z', '+', '-']) else { return false };
    let (clock, zone) = rest.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').map_or((clock, None), |(whole, part)| (whole, Some(part)));
    let is_fraction = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_date(date)
        && numbers(seconds, [2, 2, 2], ':').is_some_and(|[hour, minute, second]| is_clock(hour, minute, second))
        && fraction.is_none_or(is_fraction)
        && (zone == "Z" || numbers(&zone[1..], [2, 2], ':').is_some_and(|[hour, minute]| is_clock(hour, minute, 0)))
}

fn is_date(text: &str) -> bool {
    numbers(text, [4, 2, 2], '-').is_some_and(|[year, month, day]| {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 if is_leap => 29,
            2 => 28,
            1..=12 => 31,
            _ => 0,
        };
        (1..=days).contains(&day)
    })
}

fn is_clock(hour: u32, minute: u32, second: u32) -> bool {
    hour < 24 && minute < 60 && second < 60
}

/// Parses numbers with the given numbers of digits, separated by `sign`.
fn numbers<const N: usize>(text: &str, lengths: [usize; N], sign: char) -> Option<[u32; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(sign);
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next().filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_every_version_of_podman_accepts_are_valid() {
        for text in [
            "2017-07-14T02:40:00Z",
            "2017-07-14T02:40:00.123456789+02:00",
            "0001-01-01T00:00:00Z",
            "2016-02-29T23:59:59.5-11:30",
        ] {
            assert!(is_time(text), "{text}");
        }
        for text in [
            "",
            "2017-07-14",
            "2017-07-14T02:40:00",
            "2017-07-14t02:40:00z",
            "2017-07-14T2:40:00Z",
            "2017-02-29T02:40:00Z",
            "2017-07-14T02:40:00,5Z",
            "2017-07-14T02:40:00.Z",
            "2017-07-14T24:00:00Z",
            "2017-13-01T00:00:00Z",
            "2017-07-00T00:00:00Z",
            "2017-07-14T02:40Z",
            "2017-07-14T02:40:00+02",
            "2017-07-14T02:40:00ZZ",
            "+017-07-14T02:40:00Z",
        ] {
            assert!(!is_time(text), "{text}");
        }
    }
}
