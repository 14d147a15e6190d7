//! The large images of the pull benchmark: six layers, some 636 MiB unpacked, packed well below that, and the same
//! bytes every time.
//!
//! There are several that differ in one small file of each layer, so that none has to be removed between two pulls:
//! ext4 takes long to find an inode when many were deleted a minute ago, and who deletes when differs.

use anyhow::Result;

use crate::oci::{Flavor, Image, Layer, Pack, Recipe, Tree, digest};
use crate::registry::Client;

/// The repository that they are pushed to.
pub const REPOSITORY: &str = "large";

/// The tag of one of them.
#[must_use]
pub fn tag(pack: Pack, number: usize) -> String {
    let pack = match pack {
        Pack::Gzip => "gzip",
        Pack::Zstd => "zstd",
        Pack::Plain => "plain",
    };
    format!("{pack}{number}")
}

/// The name of one of them.
#[must_use]
pub fn reference(pack: Pack, number: usize) -> String {
    format!("berth.test/{REPOSITORY}:{}", tag(pack, number))
}

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

/// One layer's archive: a few large programs, and many small text files in folders.
fn archive(number: usize, mib: usize) -> Result<Vec<u8>> {
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
    tree.archive()
}

/// What all large images of one packing have in common.
#[derive(Debug)]
pub struct Common {
    pack: Pack,
    layers: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    archive: Vec<u8>,
    packed: Vec<u8>,
}

impl Common {
    /// Makes it, the layers side by side. It takes half a minute of CPU.
    ///
    /// # Errors
    /// When a layer cannot be packed.
    pub fn new(pack: Pack) -> Result<Self> {
        let make = |number: usize, mib: usize| {
            let archive = archive(number, mib)?;
            let packed = pack.packed(&archive)?;
            Ok(Part { archive, packed })
        };
        let layers = std::thread::scope(|scope| {
            let make = &make;
            let tasks: Vec<_> = LAYERS
                .iter()
                .enumerate()
                .map(|(number, mib)| scope.spawn(move || make(number, *mib)))
                .collect();
            tasks
                .into_iter()
                .map(|task| {
                    task.join()
                        .map_err(|_| anyhow::anyhow!("a layer's thread panicked"))?
                })
                .collect::<Result<Vec<Part>>>()
        })?;
        Ok(Self { pack, layers })
    }

    /// One of them. Its layers are those of the others behind a file of its own: archives and packed streams can
    /// be joined.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn image(&self, number: usize) -> Result<Image> {
        let mut mark = Tree::default();
        mark.file("which", 0o644, tag(self.pack, number).as_bytes())?;
        let mark = mark.beginning();
        let layers = self.layers.iter().map(|part| {
            let bytes = [&self.pack.packed(mark)?, part.packed.as_slice()].concat();
            Ok(Layer {
                diff_id: digest(&[mark, &part.archive].concat()),
                pack: self.pack,
                digest: digest(&bytes),
                bytes,
            })
        });
        let recipe = Recipe {
            layers: layers.collect::<Result<_>>()?,
            ..Recipe::default()
        };
        recipe.build(Flavor::Oci)
    }
}

/// Makes so many of each packing and pushes them, unless they are there.
///
/// # Errors
/// When they cannot be made, or the registry does not take them.
pub async fn push(registry: &Client, count: usize) -> Result<()> {
    for pack in [Pack::Gzip, Pack::Zstd] {
        if registry.has(REPOSITORY, &tag(pack, count - 1)).await? {
            continue;
        }
        eprintln!("making {count} large images");
        let common = tokio::task::spawn_blocking(move || Common::new(pack)).await??;
        for number in 0..count {
            let image = common.image(number)?;
            registry
                .push(REPOSITORY, &[&tag(pack, number)], &image)
                .await?;
        }
    }
    Ok(())
}
