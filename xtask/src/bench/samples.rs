//! Figures of many rounds, and what is made of them.

/// What the rounds of one measurement gave, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    rounds: Vec<f64>,
}

/// What is told of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// Of a tail the lower end of its spread.
    pub(crate) least: f64,
    /// The median; of a tail the 99th percentile.
    pub(crate) value: f64,
    /// Half of the distance between the 10th and the 90th percentile; none of a single value.
    pub(crate) spread: Option<f64>,
}

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.rounds.push(value);
    }

    pub(crate) fn extend(&mut self, more: &Self) {
        self.rounds.extend(&more.rounds);
    }

    pub(crate) fn of(rounds: impl IntoIterator<Item = f64>) -> Self {
        Self {
            rounds: rounds.into_iter().collect(),
        }
    }

    /// What each round cost more than the same round of `empty`.
    pub(crate) fn over(&self, empty: &Self) -> Self {
        let pairs = self.rounds.iter().zip(&empty.rounds);
        Self::of(pairs.map(|(ours, empty)| ours - empty))
    }

    /// The value below which this share of the rounds lies, or is; none where there are none.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = (share * last as f64).round() as usize;
        sorted.get(at.min(last)).copied()
    }

    pub(crate) fn summary(&self) -> Option<Summary> {
        let [least, low, median, high] = [0.0, 0.1, 0.5, 0.9].map(|share| self.quantile(share));
        let (low, high) = (low?, high?);
        Some(Summary {
            least: least?,
            value: median?,
            spread: (self.rounds.len() > 1).then_some((high - low) / 2.0),
        })
    }

    /// From the least to the largest; none of a single value.
    pub(crate) fn distance(&self) -> Option<f64> {
        let (least, largest) = (self.quantile(0.0)?, self.quantile(1.0)?);
        (self.rounds.len() > 1).then_some(largest - least)
    }

    /// The 99th percentile. Its spread is half of the distance between the ranks among which it is
    /// in four of five such measurements, for the count of rounds above it is binomial.
    pub(crate) fn tail(&self) -> Option<Summary> {
        /// Of the normal distribution, which the binomial one comes near.
        const NINETIETH_PERCENTILE: f64 = 1.281_6;
        const TAIL: f64 = 0.99;
        let deviation = (TAIL * (1.0 - TAIL) / self.rounds.len() as f64).sqrt();
        let reach = NINETIETH_PERCENTILE * deviation;
        let [low, tail, high] =
            [TAIL - reach, TAIL, TAIL + reach].map(|share| self.quantile(share));
        let (low, high) = (low?, high?);
        Some(Summary {
            least: low,
            value: tail?,
            spread: (self.rounds.len() > 1).then_some((high - low) / 2.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_rounds_is_least_median_and_half_of_the_inner_four_fifths() {
        let samples = Samples::of((0..=10).rev().map(f64::from));
        let expected = Summary {
            least: 0.0,
            value: 5.0,
            spread: Some(4.0),
        };
        assert_eq!(samples.summary(), Some(expected));
        assert_eq!(samples.distance(), Some(10.0));
        let single = Samples::of([5.0]);
        assert_eq!(single.summary().and_then(|summary| summary.spread), None);
        assert_eq!(single.distance(), None);
        assert_eq!(Samples::default().summary(), None);
    }

    #[test]
    fn tail_of_rounds_is_the_hundredth_from_above_give_or_take_its_rank() {
        // Of 1,000 the deviation of the rank is 3.15, of which 1.28 are 4.03.
        let samples = Samples::of((0..1000).rev().map(f64::from));
        let expected = Summary {
            least: 985.0,
            value: 989.0,
            spread: Some(4.0),
        };
        assert_eq!(samples.tail(), Some(expected));
        assert_eq!(Samples::of([5.0]).tail().and_then(|tail| tail.spread), None);
        assert_eq!(Samples::default().tail(), None);
    }

    #[test]
    fn over_takes_the_rounds_in_pairs() {
        let (ours, empty) = (Samples::of([30.0, 50.0]), Samples::of([20.0, 45.0]));
        assert_eq!(ours.over(&empty).rounds, [10.0, 5.0]);
    }
}
