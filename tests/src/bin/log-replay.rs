//! Replays a recorded write log of a block device up to any entry, and leaves out what a disk may lose when its
//! power is cut there. The format is that of dm-log-writes, which QEMU's blklogwrites driver writes too.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rustix::fs::FallocateFlags;

/// Reads the write log of a block device.
#[derive(Debug, Parser)]
enum Command {
    /// Prints how many entries there are.
    Count {
        /// The log.
        log: PathBuf,
    },
    /// Prints the number of the last entry before one that made all before it durable (0: none).
    Flushed {
        /// The log.
        log: PathBuf,
        /// The entry.
        before: u64,
    },
    /// Writes entries to an image of the device.
    Apply {
        /// The log.
        log: PathBuf,
        /// What gets the writes.
        target: PathBuf,
        /// The first entry, from 0.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// The first entry that is left out.
        #[arg(long)]
        to: u64,
        /// Leaves out half of the blocks, chosen by this number: they were in the cache of the disk. Those that
        /// were written with "force unit access" stay.
        #[arg(long)]
        lose: Option<u64>,
    },
}

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Sectors of the entries are of 512 bytes, whatever those of the log are.
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Sector, count, flags and length of the data, 8 bytes each.
const ENTRY_HEAD: usize = 32;
/// What a disk loses or keeps as a whole.
const BLOCK: usize = 4096;

fn main() -> Result<()> {
    match Command::parse() {
        Command::Count { log } => println!("{}", Log::open(&log)?.entries),
        Command::Flushed { log, before } => {
            let log = Log::open(&log)?;
            let mut flushed = 0;
            log.each(before, |number, _, entry| {
                if entry.flags & FLUSH != 0 {
                    flushed = number;
                }
                Ok(())
            })?;
            println!("{flushed}");
        }
        Command::Apply {
            log,
            target,
            from,
            to,
            lose,
        } => apply(&Log::open(&log)?, &target, from, to, lose)?,
    }
    Ok(())
}

fn apply(log: &Log, target: &Path, from: u64, to: u64, lose: Option<u64>) -> Result<()> {
    let target = OpenOptions::new()
        .write(true)
        .open(target)
        .with_context(|| target.display().to_string())?;
    let mut coin = lose.map(Coin);
    log.each(to, |number, at, entry| {
        if number < from || entry.flags & MARK != 0 {
            return Ok(());
        }
        let coin = coin.as_mut().filter(|_| entry.flags & FUA == 0);
        log.copy(at, entry, &target, coin)
            .with_context(|| format!("entry {number}"))
    })?;
    target.sync_all()?;
    Ok(())
}

/// A generator of random bits (splitmix64).
struct Coin(u64);

impl Coin {
    fn heads(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 0
    }
}

/// A log that is being read. All positions are in bytes.
struct Log {
    file: File,
    entries: u64,
    sector_size: u64,
}

/// What is recorded of one write.
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0)?;
        ensure!(
            word(&head, 0) == MAGIC,
            "{} is no write log",
            path.display()
        );
        let version = word(&head, 1);
        ensure!(version == VERSION, "a write log of version {version}");
        let [_, .., a, b, c, d] = head;
        Ok(Self {
            file,
            entries: word(&head, 2),
            sector_size: u32::from_le_bytes([a, b, c, d]).into(),
        })
    }

    fn entry(&self, at: u64) -> Result<Entry> {
        let mut head = [0; ENTRY_HEAD];
        self.file.read_exact_at(&mut head, at)?;
        Ok(Entry {
            sector: word(&head, 0),
            sectors: word(&head, 1),
            flags: word(&head, 2),
        })
    }

    /// Each entry begins on a sector of the log, its data on the next one.
    fn next(&self, at: u64, entry: &Entry) -> u64 {
        let carries = entry.flags & (DISCARD | MARK) == 0;
        let data = if carries { entry.sectors * SECTOR } else { 0 };
        at + self.sector_size + data.next_multiple_of(self.sector_size)
    }

    /// Calls for each of the first entries with its number and its position.
    fn each(&self, to: u64, mut call: impl FnMut(u64, u64, &Entry) -> Result<()>) -> Result<()> {
        ensure!(to <= self.entries, "the log has {} entries", self.entries);
        let mut at = self.sector_size;
        for number in 0..to {
            let entry = self.entry(at)?;
            call(number, at, &entry)?;
            at = self.next(at, &entry);
        }
        Ok(())
    }

    fn copy(
        &self,
        at: u64,
        entry: &Entry,
        target: &File,
        mut coin: Option<&mut Coin>,
    ) -> Result<()> {
        let data = at + self.sector_size;
        let to = entry.sector * SECTOR;
        let length = entry.sectors * SECTOR;
        let mut lost = || coin.as_mut().is_some_and(|coin| coin.heads());
        if entry.flags & DISCARD != 0 {
            // A discarded range may read as anything; as zeroes it differs most from what was there.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if !lost() {
                rustix::fs::fallocate(target, hole, to, length)?;
            }
            return Ok(());
        }
        let mut block = [0; BLOCK];
        for offset in (0..length).step_by(BLOCK) {
            if lost() {
                continue;
            }
            let size = usize::try_from(length - offset)?.min(BLOCK);
            let part = block.get_mut(..size).unwrap_or_default();
            self.file.read_exact_at(part, data + offset)?;
            target.write_all_at(part, to + offset)?;
        }
        Ok(())
    }
}

fn word(bytes: &[u8], number: usize) -> u64 {
    let mut word = [0; 8];
    word.iter_mut()
        .zip(bytes.iter().skip(number * 8))
        .for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}
