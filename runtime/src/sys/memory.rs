//! The daemon's own memory.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::fs::MetadataExt as _;

/// From this size on an allocation is a mapping of its own, which goes back to the kernel when it is freed.
const MAPPED: libc::c_int = 256 << 10;

/// As much free memory at the end of a heap goes back to the kernel.
const TRIMMED: libc::c_int = 1 << 20;

/// Has large allocations go back to the kernel as soon as they are freed. Left alone the C library raises both limits
/// after the first large one, up to 32 and 64 MiB, and keeps that much in each of its heaps (mallopt(3)).
pub fn return_large_allocations() {
    #[cfg(target_env = "gnu")]
    for (limit, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, TRIMMED),
    ] {
        // SAFETY: takes numbers only. A limit that cannot be set stays as it was, which costs memory and nothing else.
        unsafe { libc::mallopt(limit, value) };
    }
}

/// What the heaps may hold without using it, bytes. Below it, giving back costs more than it brings: pages that are
/// used again come as faults.
const SURPLUS: usize = 4 << 20;

/// Free memory in the middle of the heaps: the C library gives back what is free at their ends only, and behind a
/// few bytes that live long there may be all that hundreds of removed pods had.
#[derive(Debug, Default)]
pub struct Surplus {
    /// What was resident and not allocated when it was last given back, or less: stacks, data of the program,
    /// pages of which a part is in use.
    residue: usize,
}

impl Surplus {
    /// Whether so much is resident without being in use that it is to be given back. Counts, and does not block.
    pub fn is_there(&mut self) -> bool {
        self.is_large(idle())
    }

    /// Gives back the pages of what is free. Blocks for some milliseconds; [`Surplus::settle`] comes next.
    pub fn give_back() {
        #[cfg(target_env = "gnu")]
        // SAFETY: takes a number only, and locks each heap while it looks through it.
        unsafe {
            libc::malloc_trim(0)
        };
    }

    /// Takes what is left for what has to stay.
    pub fn settle(&mut self) {
        self.residue = idle();
    }

    fn is_large(&mut self, idle: usize) -> bool {
        self.residue = self.residue.min(idle);
        idle - self.residue > SURPLUS
    }
}

/// Bytes of this process's own memory that are resident and not allocated; 0 where that is not told.
#[cfg(target_env = "gnu")]
fn idle() -> usize {
    // SAFETY: takes nothing and gives numbers.
    let heaps = unsafe { libc::mallinfo2() };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = own.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let own = kib.and_then(|kib| kib.parse().ok()).unwrap_or(0) << 10;
    usize::saturating_sub(own, heaps.uordblks + heaps.hblkhd)
}

#[cfg(not(target_env = "gnu"))]
fn idle() -> usize {
    0
}

/// Gives back the pages of this program's code and constants: what start-up needed alone is most of them, and the rest
/// is mapped again from the page cache when it is next used. They are the file's as long as none was written to, so
/// nothing is lost.
///
/// # Errors
/// When `/proc/self` cannot be read, or the kernel refuses.
pub fn release_code() -> io::Result<()> {
    let own = std::fs::metadata("/proc/self/exe")?.ino();
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, end) in code_of(&maps, own) {
        // SAFETY: the range is one mapping of our executable file, private, without leave to write and without a page
        // of its own (`code_of`), so its pages are the file's and come back as they were.
        let outcome = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The ranges in `/proc/PID/smaps` that are the file's with this inode, may not be written to, and were not when they
/// might: the linker's tables are written once, at the start, and must stay.
fn code_of(smaps: &str, inode: u64) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut range = None;
    for line in smaps.lines() {
        match line.strip_prefix("Anonymous:") {
            Some(size) => found.extend(range.take().filter(|_| size.trim() == "0 kB")),
            None => range = code_range(line, inode).or(range),
        }
    }
    found
}

/// The range that a mapping's first line tells, if it is of this file and cannot be written to.
fn code_range(line: &str, inode: u64) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let modes = ["r-xp", "r--p"];
    if !modes.contains(&fields.next()?) || fields.nth(2)?.parse() != Ok(inode) {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_files_is_meant() {
        let mapping = |mode, inode, written| {
            format!(
                "55d0-66f0 {mode} 00002000 fe:00 {inode}  /usr/bin/berth\nSize: 8 kB\nAnonymous: {written} kB\nVmFlags: rd\n"
            )
        };
        let other = [
            mapping("rwxp", 7, 0),
            mapping("rw-p", 7, 0),
            mapping("r-xs", 7, 0),
            mapping("r-xp", 8, 0),
            mapping("r--p", 7, 4),
            "7ffc-7ffd r-xp 0 00:00 0 [vdso]\nAnonymous: 0 kB\n".to_owned(),
        ];
        for mode in ["r-xp", "r--p"] {
            let maps = format!("{}{}{0}", other.concat(), mapping(mode, 7, 0));
            assert_eq!(code_of(&maps, 7), [(0x55d0, 0x66f0)], "{mode}");
        }
        assert!(code_of(&other.concat(), 7).is_empty());
    }

    #[test]
    fn what_is_not_used_is_given_back_once() {
        let mut surplus = Surplus::default();
        let mib = 1 << 20;
        assert!(surplus.is_large(10 * mib), "what start-up has left");
        surplus.residue = 6 * mib;
        // Used and freed again between two looks, it is there all the same.
        for (idle, large) in [(6, false), (10, false), (11, true), (5, false), (10, true)] {
            assert_eq!(surplus.is_large(idle * mib), large, "{idle}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        for _ in 0..3 {
            release_code().unwrap();
        }
    }
}
