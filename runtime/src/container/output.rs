//! What commands write, kept in the daemon's memory until it is answered: some of each for certain, the rest as far
//! as all of them together leave room.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

/// Most bytes of each stream that are kept (row R036); the rest is read and thrown away.
const CAP: usize = 16 << 20;

/// What is kept of each stream whatever others keep: no pod makes another's probes blind.
const CERTAIN: usize = 64 << 10;

/// What is kept in all as long as it is not what is certain. An answer is copied once while it is encoded, and the
/// largest has 16 MiB: with that, two hundred commands that write as much as they can stay under 64 MiB.
const COMMON: usize = 20 << 20;

/// Bytes read at once; they are on the stack, so that a command that waits costs none.
const PIECE: usize = 16 << 10;

/// Room for the text that marks where output was cut.
const MARK: usize = 96;

/// Bytes of output that all commands hold together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    used: AtomicUsize,
}

impl Budget {
    /// Takes up to `wanted` bytes as far as there is room, and `certain` of them in any case.
    fn take(&self, wanted: usize, certain: usize) -> usize {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let room = COMMON.saturating_sub(used);
            let given = wanted.min(room.max(certain));
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match self
                .used
                .compare_exchange_weak(used, used + given, success, failure)
            {
                Ok(_) => return given,
                Err(now) => used = now,
            }
        }
    }
}

/// A part of the budget, given back when this goes.
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({})", self.bytes)
    }
}

/// Keeps output counted for as long as a copy of it is in memory.
#[derive(Clone, Debug)]
pub struct Held(#[expect(dead_code, reason = "what matters is when it goes")] Arc<[Share; 2]>);

#[cfg(test)]
impl Held {
    /// Something that is counted, and how much is.
    pub(crate) fn of(bytes: usize) -> (Self, impl Fn() -> usize) {
        let budget: Arc<Budget> = Arc::default();
        let share = || Share {
            budget: budget.clone(),
            bytes: budget.take(bytes, bytes),
        };
        let held = Self(Arc::new([share(), share()]));
        (held, move || budget.used.load(Ordering::Relaxed))
    }
}

/// The beginning of what a stream said.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
    /// Bytes that came after it and were thrown away.
    lost: u64,
    share: Share,
}

/// What a command left behind.
#[derive(Debug)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// Exit code; 128 + signal.
    pub exit_code: i32,
}

impl ExecOutput {
    /// Both streams, in `room` bytes together, and what keeps them counted. Each stream keeps at least half of the room if it
    /// needs that much; one that is cut, here or before, ends with a text that says so.
    pub fn fit(self, room: usize) -> (Vec<u8>, Vec<u8>, Held) {
        let errors = self.stderr.length().min(room / 2);
        let (stdout, out_share) = self.stdout.fit(room - errors);
        let (stderr, err_share) = self.stderr.fit(room.saturating_sub(stdout.len()));
        (stdout, stderr, Held(Arc::new([out_share, err_share])))
    }
}

impl Captured {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            bytes: Vec::new(),
            lost: 0,
            share: Share {
                budget: budget.clone(),
                bytes: 0,
            },
        }
    }

    /// Takes what there is room for. After the first byte that is thrown away nothing is taken: what is kept is the
    /// beginning, without holes.
    fn keep(&mut self, piece: &[u8]) {
        let kept = self.bytes.len();
        let wanted = if self.lost > 0 { 0 } else { piece.len() };
        let wanted = wanted.min(CAP - kept);
        let certain = wanted.min(CERTAIN.saturating_sub(kept));
        let given = self.share.budget.take(wanted, certain);
        self.share.bytes += given;
        self.bytes.extend_from_slice(&piece[..given]);
        self.lost += (piece.len() - given) as u64;
    }

    /// What it will take in an answer.
    fn length(&self) -> usize {
        self.bytes.len() + if self.lost > 0 { MARK } else { 0 }
    }

    fn fit(mut self, room: usize) -> (Vec<u8>, Share) {
        if self.length() > room || self.lost > 0 {
            let kept = self.bytes.len().min(room.saturating_sub(MARK));
            self.lost += (self.bytes.len() - kept) as u64;
            self.bytes.truncate(kept);
            let mark = format!("\nberth: output cut here, {} bytes dropped\n", self.lost);
            debug_assert!(mark.len() <= MARK);
            self.bytes.reserve_exact(mark.len());
            self.bytes.extend_from_slice(mark.as_bytes());
        }
        (self.bytes, self.share)
    }
}

/// Reads until end of file, or until the process has ended and the pipe is empty: what it wrote itself is
/// in the pipe by then, and a child that holds the pipe open is not waited for.
pub(super) async fn collect(
    pipe: Receiver,
    mut ended: watch::Receiver<bool>,
    mut captured: Captured,
) -> io::Result<Captured> {
    loop {
        if *ended.borrow_and_update() {
            drain(&pipe, &mut captured)?;
            return Ok(captured);
        }
        match read(&pipe, &mut captured) {
            Ok(0) => return Ok(captured),
            // A writer that is faster than this must not keep the thread from the others.
            Ok(_) => tokio::task::yield_now().await,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    ready = pipe.readable() => ready?,
                    _ = ended.changed() => {}
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn read(pipe: &Receiver, captured: &mut Captured) -> io::Result<usize> {
    let mut piece = [0; PIECE];
    let got = pipe.try_read(&mut piece)?;
    captured.keep(&piece[..got]);
    Ok(got)
}

/// What is in the pipe right now, and no more: somebody else may go on writing.
fn drain(pipe: &Receiver, captured: &mut Captured) -> io::Result<()> {
    let mut piece = [0; PIECE];
    let mut left = usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX);
    while left > 0 {
        match rustix::io::read(pipe, &mut piece[..left.min(PIECE)]) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(got) => {
                captured.keep(&piece[..got]);
                left -= got;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::exec::pipe;
    use super::*;
    use std::io::Write;

    fn captured(budget: &Arc<Budget>, bytes: usize) -> Captured {
        let mut captured = Captured::new(budget);
        for piece in vec![b'x'; bytes].chunks(PIECE) {
            captured.keep(piece);
        }
        captured
    }

    fn used(budget: &Budget) -> usize {
        budget.used.load(Ordering::Relaxed)
    }

    fn fitted(stdout: usize, stderr: usize, room: usize) -> (Vec<u8>, Vec<u8>) {
        let budget = Arc::default();
        let output = ExecOutput {
            stdout: captured(&budget, stdout),
            stderr: captured(&budget, stderr),
            exit_code: 3,
        };
        let (stdout, stderr, held) = output.fit(room);
        assert!(stdout.len() + stderr.len() <= room);
        drop(held);
        assert_eq!(used(&budget), 0);
        (stdout, stderr)
    }

    /// The number of payload bytes, and whether there is a mark.
    fn shape(bytes: &[u8]) -> (usize, bool) {
        let payload = bytes.iter().take_while(|b| **b == b'x').count();
        let rest = String::from_utf8_lossy(&bytes[payload..]).into_owned();
        assert!(
            rest.is_empty() || rest.starts_with("\nberth: output cut here, "),
            "{rest}"
        );
        (payload, !rest.is_empty())
    }

    #[test]
    fn output_is_cut_fairly_with_a_mark_and_only_when_it_does_not_fit() {
        let shapes = |stdout, stderr, room| {
            let (stdout, stderr) = fitted(stdout, stderr, room);
            (shape(&stdout), shape(&stderr))
        };
        assert_eq!(shapes(400, 600, 1000), ((400, false), (600, false)));
        assert_eq!(shapes(2000, 0, 1000), ((904, true), (0, false)));
        assert_eq!(shapes(2000, 100, 1000), ((804, true), (100, false)));
        let (stdout, stderr) = shapes(2000, 3000, 1000);
        assert_eq!(stdout, (404, true));
        // It may use what the first mark did not need.
        assert!(stderr.1 && stderr.0 >= 404, "{stderr:?}");
        assert_eq!(shapes(100, 3000, 1000), ((100, false), (804, true)));
    }

    #[test]
    fn the_mark_counts_what_is_gone() {
        let (stdout, _) = fitted(CAP + 10, 0, CAP + MARK);
        let text = String::from_utf8_lossy(&stdout[CAP..]).into_owned();
        assert_eq!(text, "\nberth: output cut here, 10 bytes dropped\n");
    }

    #[test]
    fn each_command_keeps_the_certain_part_and_all_of_them_no_more_than_the_budget() {
        let budget = Arc::default();
        let hogs: Vec<Captured> = (0..4).map(|_| captured(&budget, 12 << 20)).collect();
        assert_eq!(hogs[0].lost, 0);
        assert_eq!(hogs[1].bytes.len(), COMMON - (12 << 20));
        assert_eq!(hogs[2].bytes.len(), CERTAIN);
        let small = captured(&budget, CERTAIN);
        assert_eq!((small.bytes.len(), small.lost), (CERTAIN, 0));
        assert_eq!(used(&budget), COMMON + 3 * CERTAIN);
        drop((hogs, small));
        assert_eq!(used(&budget), 0);
        assert_eq!(captured(&budget, 12 << 20).lost, 0);
    }

    #[test]
    fn what_is_kept_has_no_holes_even_when_there_is_room_again() {
        let budget = Arc::default();
        let hog = captured(&budget, CAP);
        let other = captured(&budget, CAP);
        let mut slow = captured(&budget, CERTAIN + 5);
        assert_eq!((slow.bytes.len(), slow.lost), (CERTAIN, 5));
        drop((hog, other));
        slow.keep(b"later");
        assert_eq!((slow.bytes.len(), slow.lost), (CERTAIN, 10));
    }

    #[test]
    fn an_answer_is_counted_until_its_last_copy_is_gone() {
        let budget = Arc::default();
        let output = ExecOutput {
            stdout: captured(&budget, 100),
            stderr: captured(&budget, 50),
            exit_code: 0,
        };
        let (_, _, held) = output.fit(1000);
        let copy = held.clone();
        drop(held);
        assert_eq!(used(&budget), 150);
        drop(copy);
        assert_eq!(used(&budget), 0);
    }

    #[tokio::test]
    async fn a_pipe_that_is_held_open_does_not_hang_the_reader() {
        let (read, write) = pipe().unwrap();
        let mut holder = std::fs::File::from(write);
        holder.write_all(b"said").unwrap();
        let (ended, ending) = watch::channel(false);
        let reader = tokio::spawn(collect(read, ending, Captured::new(&Arc::default())));
        ended.send_replace(true);
        assert_eq!(reader.await.unwrap().unwrap().bytes, b"said");
        drop(holder);
    }

    #[tokio::test]
    async fn writers_that_never_stop_do_not_hang_the_reader() {
        let (read, write) = pipe().unwrap();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let mut file = std::fs::File::from(write.try_clone().unwrap());
                std::thread::spawn(move || while file.write_all(&[b'y'; 4096]).is_ok() {})
            })
            .collect();
        drop(write);
        let (ended, ending) = watch::channel(false);
        let reader = tokio::spawn(collect(read, ending, Captured::new(&Arc::default())));
        // One thread: this goes on only if the reader lets it.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        ended.send_replace(true);
        assert!(!reader.await.unwrap().unwrap().bytes.is_empty());
        writers.into_iter().for_each(|w| w.join().unwrap());
    }

    #[tokio::test]
    async fn output_over_the_cap_is_read_and_thrown_away() {
        let (read, write) = pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            let block = vec![b'x'; 1 << 20];
            (0..20).try_for_each(|_| file.write_all(&block)).unwrap();
        });
        let (_ended, ending) = watch::channel(false);
        let captured = collect(read, ending, Captured::new(&Arc::default()));
        let captured = captured.await.unwrap();
        assert_eq!(captured.bytes.len(), CAP);
        assert_eq!(captured.lost, 4 << 20);
        writer.join().unwrap();
    }
}
