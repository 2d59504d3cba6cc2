//! How long a caller waits.

use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// The longest deadline that is honoured; grpc-timeout may say centuries.
const LONGEST: Duration = Duration::from_hours(24);

/// The time in which a request must be answered: what it [asks for](asked), else `default`; less a
/// little, so that our own words arrive before the client gives up by itself.
pub(super) fn of(metadata: &MetadataMap, default: Duration) -> Duration {
    asked(metadata).unwrap_or_else(|| a_little_less(default))
}

/// The time in which a request asks to be answered, its `grpc-timeout`, less a little.
pub(super) fn asked(metadata: &MetadataMap) -> Option<Duration> {
    let asked = metadata.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
    asked.map(a_little_less)
}

fn a_little_less(whole: Duration) -> Duration {
    let whole = whole.min(LONGEST);
    whole.saturating_sub((whole / 10).clamp(Duration::from_millis(20), Duration::from_secs(1)))
}

/// What is left of a deadline for the next of several steps.
pub(super) fn left_until(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_met_a_little_early() {
        let mut metadata = MetadataMap::new();
        assert_eq!(of(&metadata, Duration::from_mins(1)), Duration::from_secs(59));
        metadata.insert("grpc-timeout", "1S".parse().unwrap());
        assert_eq!(of(&metadata, Duration::from_mins(1)), Duration::from_millis(900));
        metadata.insert("grpc-timeout", "10m".parse().unwrap());
        assert_eq!(of(&metadata, Duration::from_mins(1)), Duration::ZERO);
        metadata.insert("grpc-timeout", "nonsense".parse().unwrap());
        assert_eq!(of(&metadata, Duration::from_secs(1)), Duration::from_millis(900));
    }

    #[test]
    fn only_what_grpc_allows_is_read() {
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
        for text in ["", "S", "1", "123456789S", "-1S", "1x", "é"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
