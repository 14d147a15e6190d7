//! Maps of sparse files: where in the file the content goes.

use super::header::number;
use super::pax::decimal;

/// In order, not overlapping, within the file, and as much as there is content.
pub(crate) fn is_valid(map: &[(u64, u64)], size: u64, content: u64) -> bool {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in map {
        let Some(next) = offset.checked_add(*length) else {
            return false;
        };
        if *offset < end || next > size {
            return false;
        }
        end = next;
        sum += length;
    }
    sum == content
}

/// Pairs of twelve-byte numbers; an empty one ends them.
pub(crate) fn read_parts(parts: &[u8], map: &mut Vec<(u64, u64)>) -> Option<()> {
    for part in parts.chunks_exact(24) {
        let (offset, length) = part.split_at(12);
        if offset.first() == Some(&0) {
            break;
        }
        let positive = |field| u64::try_from(number(field)?).ok();
        map.push((positive(offset)?, positive(length)?));
    }
    Some(())
}

/// `offset,length,offset,length…`
pub(crate) fn read_list(text: &[u8]) -> Option<Vec<(u64, u64)>> {
    let numbers = text.split(|byte| *byte == b',').map(decimal);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[a, b]| (*a, *b)).collect())
}

/// Reads the map at the start of a file's content: a count and that many pairs, each number on a line.
pub(crate) struct MapReader {
    limit: u64,
    taken: u64,
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            taken: 0,
            line: Vec::new(),
            count: None,
            numbers: Vec::new(),
        }
    }

    /// Takes a block. Outer none: it makes no sense or is too long; inner none: there is more to come.
    #[expect(clippy::option_option, reason = "wrong, not yet, done")]
    pub(crate) fn feed(&mut self, block: &[u8]) -> Option<Option<Vec<(u64, u64)>>> {
        self.taken += block.len() as u64;
        if self.taken > self.limit {
            return None;
        }
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return None;
                }
                continue;
            }
            let number = decimal(&self.line).ok()?;
            self.line.clear();
            match self.count {
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
            let wanted = self.count?.checked_mul(2)?;
            if self.numbers.len() as u64 == wanted {
                let (pairs, _) = self.numbers.as_chunks::<2>();
                return Some(Some(pairs.iter().map(|[a, b]| (*a, *b)).collect()));
            }
        }
        Some(None)
    }
}
