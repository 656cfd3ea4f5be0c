//! Several measurements of the same figure: their median and their range.

use serde::Serialize;

/// The part of the median beyond which a spread is marked as wide.
const WIDE: f64 = 0.15;

/// The median of values, with their range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Number of values.
    pub count: usize,
}

impl Spread {
    /// Returns the spread of these values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let count = sorted.len();
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        Some(Self {
            median,
            min,
            max,
            count,
        })
    }

    /// Returns the range as a part of the median.
    pub fn relative(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.max - self.min) / self.median
    }

    /// Returns whether the values are too far apart to be trusted.
    pub fn is_wide(&self) -> bool {
        self.relative() > WIDE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
        let spread = Spread::of([5.0, 4.0, 9.0]).unwrap();
        assert_eq!((spread.min, spread.max, spread.count), (4.0, 9.0, 3));
    }

    #[test]
    fn far_apart_is_wide() {
        assert!(!Spread::of([100.0, 105.0, 110.0]).unwrap().is_wide());
        assert!(Spread::of([100.0, 130.0]).unwrap().is_wide());
        assert!(!Spread::of([100.0]).unwrap().is_wide());
        assert!(!Spread::of([0.0, 0.0]).unwrap().is_wide());
    }
}
