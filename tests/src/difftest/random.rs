//! Numbers that follow from a seed (SplitMix64), the same on every machine.

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a case of a run.
    #[must_use]
    pub fn new(seed: u64, case: usize) -> Self {
        let mut random = Self(seed ^ (case as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Some of them, each with the chance given in percent, in any order.
    pub fn some<T: Clone>(&mut self, percent: usize, of: &[T]) -> Vec<T> {
        let mut chosen: Vec<T> = of
            .iter()
            .filter(|_| self.chance(percent))
            .cloned()
            .collect();
        for last in (1..chosen.len()).rev() {
            let other = self.below(last + 1);
            chosen.swap(last, other);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers() {
        let numbers = |seed, case| {
            let mut random = Random::new(seed, case);
            [random.below(1000), random.below(1000), random.below(1000)]
        };
        assert_eq!(numbers(7, 3), numbers(7, 3));
        assert_ne!(numbers(7, 3), numbers(7, 4));
        assert_ne!(numbers(7, 3), numbers(8, 3));
    }

    #[test]
    fn some_keep_what_there_is() {
        let mut random = Random::new(1, 1);
        let mut all = random.some(100, &[1, 2, 3, 4]);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4]);
        assert!(random.some(0, &[1, 2]).is_empty());
    }
}
