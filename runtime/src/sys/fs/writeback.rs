//! Writing to the disk before anybody waits for it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Starts to write what is dirty of a file, and does not wait for it: `sync_file_range(2)`. It is a hint, so nothing
/// is said of a file system that does not take it; what fails on the way is the next sync's to report.
pub fn start_writeback(file: BorrowedFd<'_>) {
    // SAFETY: the call takes numbers only, and the descriptor is open as long as it is borrowed.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}
