//! The engine: takes what is in the corpus, changes it, and goes on from what behaved in a new way.
//!
//! No instrumentation, so it runs with the pinned stable compiler, in `cargo test`, with no crate and no rebuild of
//! the dependencies. What guides it in the place of coverage is what a target tells of each input (which error, which
//! shape of tree): parsers that say precisely what they dislike make a good map.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No input may take longer; a machine that is busy is not that slow.
const SLOW: Duration = Duration::from_secs(20);

/// Inputs longer than this are not kept.
const KEPT: usize = 8 << 10;

/// A corpus of more than this is not small any more.
const CORPUS: usize = 40;

/// Something that takes bytes.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Inputs to begin with, besides the corpus.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Panics when something is wrong; else says how the input behaved.
    pub(crate) run: fn(&[u8]) -> String,
    /// Makes an input from those that there are.
    pub(crate) change: fn(&mut Rng, &[Vec<u8>]) -> Vec<u8>,
}

/// xorshift64*.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0) % end
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[5]
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len());
        &from[at]
    }
}

fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target.name)
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(corpus_dir(target)) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn name_of(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Numbers differ between inputs that behave alike.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '0' } else { c };
        if !(c == '0' && shape.ends_with('0')) {
            shape.push(c);
        }
    }
    shape.truncate(
        shape
            .char_indices()
            .nth(120)
            .map_or(shape.len(), |(at, _)| at),
    );
    shape
}

/// Runs one input. One that fails is written to `target/fuzz` before the test ends.
fn run(target: &Target, bytes: &[u8], seen: &mut BTreeSet<String>) -> bool {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let slow = start.elapsed() > SLOW;
    match result {
        Ok(behaviour) if !slow => seen.insert(shape(&behaviour)),
        result => {
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
            std::fs::create_dir_all(&dir).unwrap();
            let path = dir.join(format!("{}-{}", target.name, name_of(bytes)));
            std::fs::write(&path, bytes).unwrap();
            let what = if result.is_err() { "fails" } else { "is slow" };
            panic!(
                "{}: an input {what}; it is in {}: put it into {} when it is fixed",
                target.name,
                path.display(),
                corpus_dir(target).display()
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The corpus once more, then new inputs for `FUZZ_SECONDS` divided by `targets`, two seconds when it is not set.
///
/// `FUZZ_SEED` repeats a run; `FUZZ_KEEP=1` adds inputs that behave in a new way to the corpus.
pub(crate) fn drive(target: &Target, targets: u64) {
    let asked = number("FUZZ_SECONDS");
    let time = asked.map_or(Duration::from_secs(2), |seconds| {
        Duration::from_millis(seconds * 1000 / targets)
    });
    let clock = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(1, |time| time.as_secs());
    let seed = number("FUZZ_SEED").unwrap_or(if asked.is_some() { clock } else { 1 });
    let keep = number("FUZZ_KEEP") == Some(1);
    let mut seen = BTreeSet::new();
    let mut pool: Vec<Vec<u8>> = Vec::new();
    let kept = corpus(target);
    for (path, bytes) in &kept {
        println!("{}: {}", target.name, path.display());
        run(target, bytes, &mut seen);
        pool.push(bytes.clone());
    }
    for bytes in (target.seeds)() {
        run(target, &bytes, &mut seen);
        pool.push(bytes);
    }
    let (replayed, mut runs, mut found) = (seen.len(), 0u64, Vec::new());
    let (mut rng, start) = (Rng::new(seed.wrapping_mul(0x9e37_79b9)), Instant::now());
    while start.elapsed() < time {
        let bytes = (target.change)(&mut rng, &pool);
        runs += 1;
        if run(target, &bytes, &mut seen) && bytes.len() <= KEPT {
            found.push(bytes.clone());
            pool.push(bytes);
        }
    }
    println!(
        "{}: {} inputs of the corpus, {runs} new ones with seed {seed}; behaviours: {replayed} known, {} new",
        target.name,
        kept.len(),
        seen.len() - replayed
    );
    assert!(runs > 0, "{}: no time for a single input", target.name);
    if keep {
        std::fs::create_dir_all(corpus_dir(target)).unwrap();
        found.sort_by_key(Vec::len);
        for bytes in found.iter().take(CORPUS.saturating_sub(kept.len())) {
            std::fs::write(corpus_dir(target).join(name_of(bytes)), bytes).unwrap();
        }
    }
}

/// Some of the changes that break parsers, to bytes of any kind.
pub(crate) fn scramble(rng: &mut Rng, bytes: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&[u8]]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = (at + 1 + rng.below(16)).min(bytes.len());
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 if at < bytes.len() => {
                bytes[at] = *rng.pick(&[0, 1, b' ', b'/', b'.', 0x7f, 0x80, 0xff])
            }
            2 => drop(bytes.drain(at.min(end)..end)),
            3 => {
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => bytes.insert(at, rng.byte()),
            5 => bytes.truncate(at),
            6 => {
                let other = rng.pick(pool);
                let from = rng.below(other.len() + 1);
                let to = (from + rng.below(64)).min(other.len());
                bytes.splice(at..end.max(at), other[from..to].iter().copied());
            }
            _ => {
                let word = *rng.pick(words);
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
}
