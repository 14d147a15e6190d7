//! The large image of the pull benchmark: six gzip layers, some 636 MiB unpacked, packed well below that, and the same
//! bytes every time.

use anyhow::Result;

use crate::oci::{Flavor, Image, Layer, Pack, Recipe, Tree};

/// The name under which it is pushed.
pub const REFERENCE: &str = "berth.test/large:1";

const MIB: usize = 1024 * 1024;
/// Sizes of the layers in MiB; one is far larger than the others, as it is in real images.
const LAYERS: [usize; 6] = [320, 120, 80, 60, 40, 16];

/// A small generator with a fixed seed (xorshift64*).
#[derive(Debug)]
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit
    }
}

/// Text of words from a vocabulary of 4096, some four to one by gzip, as source files are.
fn text(generator: &mut Generator, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        let word = generator.below(4096);
        for letter in 0..3 + word % 6 {
            let code = (word.wrapping_mul(31).wrapping_add(letter * 7) >> (letter % 3)) % 26;
            bytes.push(b'a' + u8::try_from(code).unwrap_or(0));
        }
        bytes.push(if generator.below(12) == 0 {
            b'\n'
        } else {
            b' '
        });
    }
    bytes.truncate(size);
    bytes
}

/// Runs of noise between runs of zeros and repeats, some two to one by gzip, as programs are.
fn binary(generator: &mut Generator, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(size + 512);
    while bytes.len() < size {
        let run = 16 + generator.below(240);
        match generator.below(4) {
            0 => bytes.resize(bytes.len() + run, 0),
            1 if bytes.len() > 4096 => {
                let start = bytes.len() - 4096 + generator.below(2048);
                bytes.extend_from_within(start..start + run);
            }
            _ => {
                for _ in 0..run.div_ceil(8) {
                    bytes.extend_from_slice(&generator.next().to_le_bytes());
                }
            }
        }
    }
    bytes.truncate(size);
    bytes
}

/// One layer: a few large programs, and many small text files in folders.
fn layer(number: usize, mib: usize) -> Result<Layer> {
    let mut generator = Generator(0x9E37_79B9_7F4A_7C15 ^ (u64::try_from(number)? + 1));
    let mut tree = Tree::default();
    let top = format!("opt/layer{number}");
    tree.dir("opt", 0o755)?.dir(&top, 0o755)?;
    let (mut left, mut count) = (mib * MIB, 0_usize);
    while left > 0 {
        let folder = format!("{top}/d{:03}", count / 32);
        if count.is_multiple_of(32) {
            tree.dir(&folder, 0o755)?;
        }
        let large = count.is_multiple_of(32);
        let size = if large {
            4 * MIB
        } else {
            2048 + generator.below(96 * 1024)
        }
        .min(left);
        let content = if large {
            binary(&mut generator, size)
        } else {
            text(&mut generator, size)
        };
        tree.file(&format!("{folder}/f{count:05}"), 0o644, &content)?;
        left -= size;
        count += 1;
    }
    tree.layer(Pack::Gzip)
}

/// Makes the image; takes several seconds of CPU per layer, so the layers are made side by side.
///
/// # Errors
/// When a layer cannot be packed.
pub fn image() -> Result<Image> {
    let layers = std::thread::scope(|scope| {
        let tasks: Vec<_> = LAYERS
            .iter()
            .enumerate()
            .map(|(number, mib)| scope.spawn(move || layer(number, *mib)))
            .collect();
        tasks
            .into_iter()
            .map(|task| {
                task.join()
                    .map_err(|_| anyhow::anyhow!("a layer's thread panicked"))?
            })
            .collect::<Result<Vec<Layer>>>()
    })?;
    Recipe {
        layers,
        ..Recipe::default()
    }
    .build(Flavor::Oci)
}
