//! Archives made byte by byte, so that they can be wrong.

use std::fmt::Write;

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    /// Where the last entry's header is.
    last: usize,
}

pub(crate) fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    field[..width].copy_from_slice(text.as_bytes());
    field[width] = 0;
}

fn checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A header with the given name and type.
    pub(crate) fn entry(&mut self, name: &[u8], kind: u8, content: &[u8]) -> &mut Self {
        let mut header = [0; 512];
        let length = name.len().min(100);
        header[..length].copy_from_slice(&name[..length]);
        octal(&mut header[100..108], 0o644);
        octal(&mut header[108..116], 0);
        octal(&mut header[116..124], 0);
        octal(&mut header[124..136], content.len() as u64);
        octal(&mut header[136..148], 0);
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        checksum(&mut header);
        self.last = self.bytes.len();
        self.bytes.extend(header);
        self.append(content);
        self
    }

    /// Content and its padding.
    pub(crate) fn append(&mut self, content: &[u8]) {
        self.bytes.extend(content);
        let padding = content.len().next_multiple_of(512) - content.len();
        self.bytes.extend(std::iter::repeat_n(0, padding));
    }

    /// Changes the last header.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut [u8])) -> &mut Self {
        let header = &mut self.bytes[self.last..self.last + 512];
        change(header);
        checksum(header);
        self
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(name.as_bytes(), b'0', content)
    }

    pub(crate) fn raw_name(&mut self, name: &[u8]) -> &mut Self {
        self.entry(name, b'0', b"")
    }

    /// Gives the last entry, which had none, content.
    pub(crate) fn content(&mut self, content: &[u8]) -> &mut Self {
        self.edit(|header| octal(&mut header[124..136], content.len() as u64));
        self.append(content);
        self
    }

    pub(crate) fn dir(&mut self, name: &str) -> &mut Self {
        self.entry(name.as_bytes(), b'5', b"").mode(0o755)
    }

    fn link(&mut self, name: &str, kind: u8, target: &str) -> &mut Self {
        self.entry(name.as_bytes(), kind, b"");
        self.edit(|header| header[157..157 + target.len()].copy_from_slice(target.as_bytes()))
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.link(name, b'2', target)
    }

    pub(crate) fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.link(name, b'1', target)
    }

    pub(crate) fn node(&mut self, name: &str, kind: u8, major: u64, minor: u64) -> &mut Self {
        self.entry(name.as_bytes(), kind, b"");
        self.edit(|header| {
            octal(&mut header[329..337], major);
            octal(&mut header[337..345], minor);
        })
    }

    pub(crate) fn mode(&mut self, mode: u64) -> &mut Self {
        self.edit(|header| octal(&mut header[100..108], mode))
    }

    pub(crate) fn owner(&mut self, uid: u64, gid: u64) -> &mut Self {
        self.edit(|header| {
            octal(&mut header[108..116], uid);
            octal(&mut header[116..124], gid);
        })
    }

    pub(crate) fn mtime(&mut self, mtime: u64) -> &mut Self {
        self.edit(|header| octal(&mut header[136..148], mtime))
    }

    pub(crate) fn pax(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let records: Vec<_> = records
            .iter()
            .map(|(k, v)| (k.as_bytes(), v.as_bytes()))
            .collect();
        self.pax_bytes(&records)
    }

    pub(crate) fn pax_bytes(&mut self, records: &[(&[u8], &[u8])]) -> &mut Self {
        let mut text = Vec::new();
        for (key, value) in records {
            text.extend(record(key, value));
        }
        self.entry(b"pax", b'x', &text)
    }

    pub(crate) fn gnu_long(&mut self, kind: u8, text: &[u8]) -> &mut Self {
        self.entry(b"././@LongLink", kind, &[text, b"\0"].concat());
        self.edit(|header| header[257..265].copy_from_slice(b"ustar  \0"))
    }

    /// A sparse file in one of GNU's four formats.
    pub(crate) fn sparse(
        &mut self,
        version: &str,
        name: &str,
        regions: &[(u64, u64)],
        size: u64,
        content: &[u8],
    ) {
        let size_text = size.to_string();
        let count = regions.len().to_string();
        let mut list = String::new();
        for (offset, length) in regions {
            let _ = write!(
                list,
                "{}{offset},{length}",
                if list.is_empty() { "" } else { "," }
            );
        }
        match version {
            "old" => {
                self.entry(name.as_bytes(), b'S', content).edit(|header| {
                    header[257..265].copy_from_slice(b"ustar  \0");
                    for (number, (offset, length)) in regions.iter().enumerate() {
                        octal(&mut header[386 + number * 24..][..12], *offset);
                        octal(&mut header[398 + number * 24..][..12], *length);
                    }
                    octal(&mut header[483..495], size);
                });
            }
            "0.0" => {
                let mut records = vec![("GNU.sparse.size".to_owned(), size_text)];
                records.push(("GNU.sparse.numblocks".to_owned(), count));
                for (offset, length) in regions {
                    records.push(("GNU.sparse.offset".to_owned(), offset.to_string()));
                    records.push(("GNU.sparse.numbytes".to_owned(), length.to_string()));
                }
                let records: Vec<_> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
                self.pax(&records).file(name, content);
            }
            "0.1" => {
                self.pax(&[
                    ("GNU.sparse.size", &size_text),
                    ("GNU.sparse.numblocks", &count),
                    ("GNU.sparse.name", name),
                    ("GNU.sparse.map", &list),
                ]);
                self.file("GNUSparseFile.0/x", content);
            }
            _ => {
                self.pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.name", name),
                    ("GNU.sparse.realsize", &size_text),
                ]);
                let mut map = format!("{count}\n");
                for (offset, length) in regions {
                    let _ = write!(map, "{offset}\n{length}\n");
                }
                let mut all = map.into_bytes();
                all.resize(all.len().next_multiple_of(512), 0);
                all.extend(content);
                self.file("GNUSparseFile.0/x", &all);
            }
        }
    }

    /// The archive with its end.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        bytes.extend([0; 1024]);
        bytes
    }

    /// The archive without its end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// A pax record, whose length counts itself.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length.to_string().len() + body != length {
        length = length.to_string().len() + body;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
