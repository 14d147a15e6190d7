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

/// What may be free in the heaps and stay there, bytes. Below it, giving back costs more than it brings: pages that are
/// used again come as faults.
const SURPLUS: usize = 4 << 20;

/// Free memory in the middle of the heaps: the C library gives back what is free at their ends only, and behind a
/// few bytes that live long there may be all that hundreds of removed pods had.
#[derive(Debug, Default)]
pub struct Surplus {
    /// The least that was free since it was given back; as much may have no pages any more.
    least: Option<usize>,
}

impl Surplus {
    /// Gives back the pages of what has become free since the last time, if they are many. Blocks for some
    /// milliseconds then.
    pub fn give_back(&mut self) {
        #[cfg(target_env = "gnu")]
        if self.is_large(free()) {
            // SAFETY: takes a number only, and locks each heap while it looks through it.
            unsafe { libc::malloc_trim(0) };
        }
    }

    fn is_large(&mut self, free: usize) -> bool {
        let least = self.least.map_or(free, |least| least.min(free));
        let large = free - least > SURPLUS;
        self.least = Some(if large { free } else { least });
        large
    }
}

/// Bytes that are free in all heaps, with pages or without.
#[cfg(target_env = "gnu")]
fn free() -> usize {
    // SAFETY: takes nothing and gives numbers.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Gives back the pages of this program's code: what start-up needed alone is most of it, and the rest is mapped
/// again from the page cache when it is next executed. Pages of code are never written, so nothing is lost.
///
/// # Errors
/// When `/proc/self` cannot be read, or the kernel refuses.
pub fn release_code() -> io::Result<()> {
    let own = std::fs::metadata("/proc/self/exe")?.ino();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for (start, end) in maps.lines().filter_map(|line| code_of(line, own)) {
        // SAFETY: the range is one mapping of our executable file, private and without leave to write
        // (`code_of` wants `r-xp`), so its pages are the file's and come back as they were.
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

/// The range of a line of `/proc/PID/maps`, if it is code of the file with this inode (proc_pid_maps(5)).
fn code_of(line: &str, inode: u64) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r-xp" || fields.nth(2)?.parse() != Ok(inode) {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_file_is_meant() {
        let line = |mode, inode| format!("55d0-66f0 {mode} 00002000 fe:00 {inode}  /usr/bin/berth");
        assert_eq!(code_of(&line("r-xp", 7), 7), Some((0x55d0, 0x66f0)));
        for other in [
            line("r--p", 7),
            line("rwxp", 7),
            line("r-xs", 7),
            line("r-xp", 8),
        ] {
            assert_eq!(code_of(&other, 7), None, "{other}");
        }
        assert_eq!(code_of("7ffc-7ffd r-xp 0 00:00 0 [vdso]", 7), None);
    }

    #[test]
    fn what_became_free_is_given_back_once() {
        let mut surplus = Surplus::default();
        let mib = 1 << 20;
        let looks = [
            (10, false), // What was free at first may be needed again.
            (13, false),
            (15, true),
            (15, false),
            (9, false), // Used again.
            (12, false),
            (14, true),
        ];
        for (free, large) in looks {
            assert_eq!(surplus.is_large(free * mib), large, "{free}");
        }
        for _ in 0..3 {
            surplus.give_back();
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        for _ in 0..3 {
            release_code().unwrap();
        }
    }
}
