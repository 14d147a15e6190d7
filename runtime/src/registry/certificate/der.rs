//! The encoding of certificates (X.690, DER), as far as it takes to find something in them.

const UTC_TIME: u8 = 0x17;
const TIME: u8 = 0x18;

/// What is left of an encoding.
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// Tag and content of the next element.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let bytes;
            (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            let add = |sum, byte: &u8| sum << 8 | usize::from(*byte);
            length = bytes.iter().fold(0, add);
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next element with its tag and its length.
    pub(super) fn whole(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        self.next()?;
        before.get(..before.len() - self.0.len())
    }

    /// The next element, if it has this tag.
    pub(super) fn optional(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let before = self.0;
        match self.next() {
            Some((tag, content)) if tag == wanted => Some(content),
            _ => {
                self.0 = before;
                None
            }
        }
    }

    /// The same, where nothing else may be.
    pub(super) fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.optional(wanted)
    }

    /// Seconds since 1970.
    pub(super) fn time(&mut self) -> Option<i64> {
        let (tag, text) = self.next()?;
        let text = std::str::from_utf8(text).ok()?;
        let digits = text.strip_suffix('Z')?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, rest) = match tag {
            UTC_TIME if digits.len() == 12 => {
                let year: i64 = digits[..2].parse().ok()?;
                (year + if year < 50 { 2000 } else { 1900 }, &digits[2..])
            }
            TIME if digits.len() == 14 => (digits[..4].parse().ok()?, &digits[4..]),
            _ => return None,
        };
        let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
        let (month, day) = (part(0)?, part(2)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days of the Gregorian calendar, counted from a March, so that a leap day is a year's last.
        let (year, month) = match month > 2 {
            true => (year, month - 3),
            false => (year - 1, month + 9),
        };
        let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let days = days + (month * 153 + 2) / 5 + day - 1 - 719_468;
        Some(days * 86_400 + part(4)? * 3600 + part(6)? * 60 + part(8)?)
    }
}
