//! Which version of the forms is written, and which are read: the rule by which a node can go back by one release.
//!
//! A form is read by a release before any release writes it. The release that brings a form writes the one before,
//! which the release before it reads; the next release writes the new one. So what runs goes on in both directions,
//! one release at a time, and what none of both forms can hold is not kept until the new one is written: a feature
//! that cannot do without waits for that.
//!
//! Two releases in a row never bring one each: the second would have to read three.

/// The newest form that each release reads, in their order. The last line is that of the release that is being made.
///
/// Those before 0.2.0 are not in it: they end what they cannot read, so for them nothing is written
/// (the room `store` keeps them from starting instead).
const RELEASES: &[(&str, u32)] = &[("0.2.0", 2)];

/// The versions of this Berth.
pub(crate) const VERSIONS: Versions = Versions::of_last(RELEASES);

/// What one release writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    /// The oldest that it reads.
    pub(crate) oldest: u32,
    /// What it writes: one of both.
    pub(crate) written: u32,
    /// The newest that it reads.
    pub(crate) newest: u32,
}

impl Versions {
    /// Those of the last of some releases.
    const fn of_last(releases: &[(&str, u32)]) -> Self {
        let last = releases.len() - 1;
        let newest = releases[last].1;
        Self {
            oldest: newest - 1,
            written: releases[last.saturating_sub(1)].1,
            newest,
        }
    }

    /// The one that is read and not written.
    pub(crate) const fn other(self) -> u32 {
        if self.written == self.newest {
            self.oldest
        } else {
            self.newest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_by_a_release_before_one_writes_it() {
        let releases = [("a", 2), ("b", 2), ("c", 3), ("d", 3), ("e", 4)];
        let versions: Vec<Versions> = (1..=releases.len())
            .map(|end| Versions::of_last(&releases[..end]))
            .collect();
        let shown = versions
            .iter()
            .map(|v| (v.oldest, v.written, v.newest, v.other()));
        let wanted = [
            (1, 2, 2, 1),
            (1, 2, 2, 1),
            (2, 2, 3, 3),
            (2, 3, 3, 2),
            (3, 3, 4, 4),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), wanted);
        for pair in versions.windows(2) {
            let reads = |v: &Versions, version| version == v.oldest || version == v.newest;
            assert!(reads(&pair[0], pair[1].written), "the way back: {pair:?}");
            assert!(reads(&pair[1], pair[0].written), "the way on: {pair:?}");
        }
    }

    #[test]
    fn this_release_stands_last_and_no_form_is_skipped() {
        let last = RELEASES.last().unwrap();
        assert_eq!(
            last.0,
            env!("CARGO_PKG_VERSION"),
            "a release has its line in the list"
        );
        for pair in RELEASES.windows(2) {
            assert!(matches!(pair[1].1 - pair[0].1, 0 | 1), "{pair:?}");
        }
        for three in RELEASES.windows(3) {
            let brought = three[2].1 - three[0].1;
            assert!(brought < 2, "two in a row bring a form: {three:?}");
        }
    }
}
