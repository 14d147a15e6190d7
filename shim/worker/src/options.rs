//! Mount options as a `config.json` words them.

use rustix::mount::MountAttrFlags as Attributes;

use crate::mounts::Propagation;
use crate::sys::MountChange;

/// The options of one mount, sorted.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) bind: bool,
    /// A bind brings along what is mounted below its source.
    pub(crate) recursive: bool,
    pub(crate) propagation: Propagation,
    /// For the mount itself.
    pub(crate) top: MountChange,
    /// For it and all that a recursive bind brings along.
    pub(crate) all: MountChange,
    /// What is meant for the file system.
    pub(crate) data: Vec<String>,
}

impl Options {
    pub(crate) fn parse<'w>(words: impl Iterator<Item = &'w str>) -> Self {
        let mut options = Self::default();
        for word in words {
            match word {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "private" | "rprivate" => options.propagation = Propagation::Private,
                "slave" | "rslave" => options.propagation = Propagation::Slave,
                "shared" | "rshared" => options.propagation = Propagation::Shared,
                "defaults" => {}
                word => options.attribute(word),
            }
        }
        options
    }

    fn attribute(&mut self, word: &str) {
        let atime = Attributes::MOUNT_ATTR__ATIME;
        let change = |change: &mut MountChange, word: &str| {
            let (set, clear) = match word {
                "ro" => (Attributes::MOUNT_ATTR_RDONLY, Attributes::empty()),
                // A bind of something read-only stays it: the flag is the host's.
                "rw" | "suid" | "dev" | "exec" => (Attributes::empty(), Attributes::empty()),
                "nosuid" => (Attributes::MOUNT_ATTR_NOSUID, Attributes::empty()),
                "nodev" => (Attributes::MOUNT_ATTR_NODEV, Attributes::empty()),
                "noexec" => (Attributes::MOUNT_ATTR_NOEXEC, Attributes::empty()),
                "nodiratime" => (Attributes::MOUNT_ATTR_NODIRATIME, Attributes::empty()),
                "relatime" => (Attributes::MOUNT_ATTR_RELATIME, atime),
                "noatime" => (Attributes::MOUNT_ATTR_NOATIME, atime),
                "strictatime" => (Attributes::MOUNT_ATTR_STRICTATIME, atime),
                _ => return false,
            };
            change.set |= u64::from(set.bits());
            change.clear |= u64::from(clear.bits());
            true
        };
        // "relatime" and "rw" are names of their own before they are recursive ones.
        let known = change(&mut self.top, word)
            || word
                .strip_prefix('r')
                .is_some_and(|rest| change(&mut self.all, rest));
        if !known {
            self.data.push(word.to_owned());
        }
    }

    /// For fsmount(2).
    pub(crate) fn attributes(&self) -> Attributes {
        Attributes::from_bits_retain(u32::try_from(self.top.set | self.all.set).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_into_flags_and_data() {
        let words = [
            "rbind",
            "rslave",
            "ro",
            "rnoexec",
            "relatime",
            "rro",
            "mode=755",
            "newinstance",
        ];
        let options = Options::parse(words.into_iter());
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, Propagation::Slave);
        let bits = |flags: Attributes| u64::from(flags.bits());
        assert_eq!(options.top.set, bits(Attributes::MOUNT_ATTR_RDONLY));
        assert_eq!(options.top.clear, bits(Attributes::MOUNT_ATTR__ATIME));
        assert_eq!(
            options.all.set,
            bits(Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NOEXEC)
        );
        assert_eq!(options.data, ["mode=755", "newinstance"]);
    }
}
