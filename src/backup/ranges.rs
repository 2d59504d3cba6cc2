//! Sets of bytes of an image.

use std::ops::Range;

/// Ranges in order, of which no two touch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds ranges, in any order.
    pub(super) fn add(&mut self, more: Vec<Range<u64>>) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(more);
        all.sort_by_key(|range| range.start);
        for range in all.into_iter().filter(|range| range.start < range.end) {
            match self.0.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => self.0.push(range),
            }
        }
    }

    /// The parts of `range` that are not in here, in order.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut position = range.start;
        let first = self.0.partition_point(|known| known.end <= range.start);
        for known in self.0[first..].iter().take_while(|known| known.start < range.end) {
            if position < known.start {
                parts.push(position..known.start);
            }
            position = known.end;
        }
        if position < range.end {
            parts.push(position..range.end);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_byte_is_in_or_missing(
            added in prop::collection::vec((0_u64..100, 0_u64..30), 0..20),
            start in 0_u64..100,
            length in 0_u64..60,
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 130];
            for part in added.chunks(3) {
                ranges.add(part.iter().map(|(start, length)| *start..start + length).collect());
                for (start, length) in part {
                    for at in *start..start + length {
                        bytes[usize::try_from(at).unwrap()] = true;
                    }
                }
            }
            let end = (start + length).min(130);
            let missing = ranges.missing(start..end);
            prop_assert!(missing.iter().all(|part| part.start < part.end));
            for at in start..end {
                let is_missing = missing.iter().any(|part| part.contains(&at));
                prop_assert_eq!(is_missing, !bytes[usize::try_from(at).unwrap()]);
            }
        }
    }
}
