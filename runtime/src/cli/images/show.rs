//! Tables.

use crate::admin::api::{DiskUse, ImageSummary, Loaded, Share};

/// The best name of an image.
pub(super) fn name(image: &ImageSummary) -> &str {
    let name = image.tags.first().or(image.digests.first());
    name.unwrap_or(&image.id)
}

/// The names that an archive gave an image; one without a name goes by its id.
pub(super) fn loaded(image: &Loaded) -> String {
    match image.names.is_empty() {
        true => image.summary.id.clone(),
        false => image.names.join(", "),
    }
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count)
        .map(|n| {
            let cells = rows.iter().filter_map(|row| row.get(n));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

pub(super) fn table(images: &[ImageSummary]) -> String {
    let mut rows = vec![words(&["IMAGE", "ID", "PULLED", "DISK", ""])];
    for image in images {
        let id = image.id.trim_start_matches("sha256:");
        let marks = [(image.in_use, "used"), (image.pinned, "pinned")];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, word)| *word);
        let mark = marks.collect::<Vec<_>>().join(", ");
        let names = image.tags.iter().map(String::as_str);
        let names: Vec<&str> = match image.tags.is_empty() {
            true => vec![name(image)],
            false => names.collect(),
        };
        for name in names {
            rows.push(vec![
                name.to_owned(),
                id.chars().take(12).collect(),
                bytes(image.size),
                bytes(image.disk),
                mark.clone(),
            ]);
        }
    }
    columns(&rows)
}

pub(super) fn disk_use(used: &DiskUse) -> String {
    let row = |name: &str, share: &Share| {
        vec![
            name.to_owned(),
            share.count.to_string(),
            bytes(share.bytes),
            bytes(share.reclaimable),
        ]
    };
    let rows = vec![
        words(&["", "COUNT", "DISK", "RECLAIMABLE"]),
        row("images", &used.images),
        row("layers", &used.layers),
        row("documents", &used.documents),
        row("partial downloads", &used.partial),
        row("writable layers", &used.containers),
    ];
    let inodes = match used.inodes {
        0 => String::new(),
        all => format!(", {} of {all} inodes", used.inodes_free),
    };
    format!(
        "{}\n{}: {} of {} free{inodes}\n",
        columns(&rows),
        used.root.display(),
        bytes(used.free),
        bytes(used.total)
    )
}

/// Whole numbers of the unit that leaves one to four digits.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 10_000 && unit + 1 < units.len() {
        value = value.div_ceil(1024);
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(10_000), "10 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
        assert_eq!(bytes(70 << 40), "70 TiB");
    }

    fn an_image() -> ImageSummary {
        ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            tags: vec!["docker.io/library/x:1".into(), "r/y:22".into()],
            digests: vec!["docker.io/library/x@sha256:1".into()],
            size: 5,
            pinned: true,
            disk: 20_000,
            pulled_at: 0,
            in_use: true,
        }
    }

    #[test]
    fn what_was_loaded_goes_by_the_names_of_the_archive() {
        let told = |names: &[&str]| {
            loaded(&Loaded {
                summary: an_image(),
                names: names.iter().map(ToString::to_string).collect(),
            })
        };
        assert_eq!(told(&["z:1"]), "z:1");
        assert_eq!(told(&["z:1", "z:2"]), "z:1, z:2");
        assert_eq!(told(&[]), an_image().id);
    }

    #[test]
    fn the_table_has_a_line_for_each_name() {
        let image = an_image();
        let other = ImageSummary {
            tags: Vec::new(),
            pinned: false,
            in_use: false,
            ..image.clone()
        };
        let want = "\
IMAGE                         ID            PULLED  DISK
docker.io/library/x:1         aaaaaaaaaaaa  5 B     20 KiB  used, pinned
r/y:22                        aaaaaaaaaaaa  5 B     20 KiB  used, pinned
docker.io/library/x@sha256:1  aaaaaaaaaaaa  5 B     20 KiB
";
        assert_eq!(table(&[image, other]), want);
    }

    #[test]
    fn room_is_shown_with_what_could_be_had_back() {
        let share = |count, bytes, reclaimable| Share {
            count,
            bytes,
            reclaimable,
        };
        let used = DiskUse {
            root: "/var/lib/berth".into(),
            images: share(2, 5 << 30, 1 << 30),
            layers: share(7, 5 << 30, 0),
            documents: share(4, 16384, 0),
            partial: share(1, 300, 300),
            containers: share(1, 0, 0),
            total: 100 << 30,
            free: 50 << 30,
            inodes: 0,
            inodes_free: 0,
        };
        let text = disk_use(&used);
        assert!(
            text.contains("images             2      5120 MiB  1024 MiB"),
            "{text}"
        );
        assert!(
            text.ends_with("/var/lib/berth: 50 GiB of 100 GiB free\n"),
            "{text}"
        );
    }
}
