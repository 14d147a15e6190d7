//! Machines that images are for: their many names, and which of them this machine can stand for.

use serde::Deserialize;

use crate::json;

/// Characters of a platform in a message.
const SHOWN: usize = 40;

/// The lowest 32-bit ARM that images are made for.
const LOWEST_ARM: u8 = 5;

/// What the entry of an index, or a configuration, says of the machine that an image is for. Versions of an operating
/// system mean nothing on Linux. Features of one are what an image needs of whoever runs it (`erofs`): Berth has none of them, and
/// an image that wants one is for somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `linux`; empty is what tools leave out.
    pub os: String,
    /// As Go calls it, or the kernel.
    pub architecture: String,
    /// Within the architecture.
    pub variant: String,
    /// What the image needs beside the architecture.
    #[serde(rename = "os.features")]
    pub features: Vec<String>,
}

/// A machine that runs images.
#[derive(Clone, Copy)]
struct Host {
    /// As Go and OCI call it.
    arch: &'static str,
    /// The x86-64 level (psABI, "micro-architecture levels"), or the version of ARM.
    level: u8,
}

impl Platform {
    /// What a configuration says.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn of_configuration(bytes: &[u8]) -> Result<Self, String> {
        json::from_slice(bytes).map_err(|error| format!("malformed: {error}"))
    }

    /// Whether it does not say for which machine. Then the image may be for this one.
    pub fn is_unsaid(&self) -> bool {
        self.architecture.is_empty() && self.is_linux() && self.wanted().next().is_none()
    }

    /// The features that it names.
    fn wanted(&self) -> impl Iterator<Item = &String> {
        self.features.iter().filter(|name| !name.is_empty())
    }

    /// Whether an image for it runs here.
    pub fn runs_here(&self) -> bool {
        self.is_unsaid() || self.rank().is_some()
    }

    /// How far it is from this machine, if its images run here: lower is better.
    pub(super) fn rank(&self) -> Option<u8> {
        self.rank_on(Host::this())
    }

    /// Whether it is for Linux on some machine, be it one that nobody here knows.
    pub(super) fn is_some_linux(&self) -> bool {
        let mut names = self.architecture.chars().chain(self.variant.chars());
        self.is_linux() && names.all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    }

    fn is_linux(&self) -> bool {
        self.os.is_empty() || self.os.eq_ignore_ascii_case("linux")
    }

    /// `os/architecture[/variant]` as it is said, printable whatever it is.
    pub fn plain(&self) -> String {
        let clean = |text: &String| -> String {
            let graphic = text.chars().filter(char::is_ascii_graphic);
            graphic.filter(|c| *c != '/').take(20).collect()
        };
        let [os, architecture, variant] = [&self.os, &self.architecture, &self.variant].map(clean);
        if architecture.is_empty() {
            return os;
        }
        let os = if os.is_empty() { "linux" } else { &os };
        match variant.as_str() {
            "" => format!("{os}/{architecture}"),
            variant => format!("{os}/{architecture}/{variant}"),
        }
    }

    /// Architecture and variant by one of their names (containerd reads the same ones).
    fn normal(&self) -> (String, String) {
        let arch = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (arch, variant) = match (arch.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (arch, variant) => (arch, variant),
        };
        (arch.to_owned(), variant.to_owned())
    }

    fn rank_on(&self, host: Host) -> Option<u8> {
        if !self.is_linux() || self.wanted().next().is_some() {
            return None;
        }
        let (arch, variant) = self.normal();
        // Of the versions of an architecture the highest that the machine has.
        let version = |variant: &str| -> Option<u8> {
            let version = variant.strip_prefix('v')?.parse().ok();
            version.filter(|version| *version <= host.level)
        };
        match (host.arch, arch.as_str()) {
            ("amd64", "amd64") if variant.is_empty() => Some(9),
            ("amd64", "amd64") => Some(10 - version(&variant).filter(|level| *level > 0)?),
            // Kernels run these too; containerd takes them when there is nothing better.
            ("amd64", "386") => Some(20),
            ("arm64", "arm64") if variant.is_empty() => Some(0),
            ("arm64", "arm64") => variant.starts_with("v8.").then_some(2),
            ("arm64" | "arm", "arm") => {
                let version = version(&variant).filter(|version| *version >= LOWEST_ARM)?;
                Some(20 + host.level - version)
            }
            (host, arch) => (host == arch).then_some(0),
        }
    }
}

impl std::fmt::Display for Platform {
    /// Quoted, for it is foreign text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let os = match self.os.as_str() {
            "" => "linux",
            os => os,
        };
        let variant = match self.variant.as_str() {
            "" => String::new(),
            variant => format!("/{variant}"),
        };
        let name = format!("{os}/{}{variant}", self.architecture);
        let name: String = name.chars().take(SHOWN).collect();
        write!(f, "{name:?}")?;
        let wanted: Vec<_> = self.wanted().take(4).map(String::as_str).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let wanted: String = wanted.join(", ").chars().take(SHOWN).collect();
        write!(f, " with os.features {wanted:?}")
    }
}

impl Host {
    fn this() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let level = match arch {
            "amd64" => cpu_level(),
            "arm64" => 8,
            _ => arm_version(rustix::system::uname().machine().to_bytes()),
        };
        Self { arch, level }
    }
}

/// This machine's architecture, as Go and OCI call it.
pub(super) fn host_arch() -> &'static str {
    Host::this().arch
}

/// `armv7l` and the like, as uname(2) has it.
fn arm_version(machine: &[u8]) -> u8 {
    match machine {
        [b'a', b'r', b'm', b'v', digit @ b'5'..=b'8', ..] => digit - b'0',
        b"aarch64" => 8,
        _ => 7,
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_level() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform {
            os: next(),
            architecture: next(),
            variant: next(),
            features: Vec::new(),
        }
    }

    #[test]
    fn features_that_nobody_here_has_are_for_others() {
        let with = |features: &[&str], name: &str| Platform {
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            ..platform(name)
        };
        let erofs = with(&["erofs"], "linux/amd64");
        assert_eq!(erofs.rank_on(X86), None);
        assert_eq!(
            erofs.to_string(),
            r#""linux/amd64" with os.features "erofs""#
        );
        assert!(!with(&["win32k"], "linux").runs_here());
        assert_eq!(with(&[""], "linux/amd64").rank_on(X86), Some(9));
        let read = br#"{"os":"linux","architecture":"amd64","os.features":null}"#;
        assert_eq!(
            Platform::of_configuration(read).unwrap(),
            platform("linux/amd64")
        );
        let read = br#"{"os":"linux","architecture":"amd64","os.features":["erofs"]}"#;
        assert_eq!(Platform::of_configuration(read).unwrap(), erofs);
    }

    const X86: Host = Host {
        arch: "amd64",
        level: 3,
    };
    const ARM: Host = Host {
        arch: "arm64",
        level: 8,
    };
    const OLD_ARM: Host = Host {
        arch: "arm",
        level: 7,
    };

    #[test]
    fn one_machine_has_many_names() {
        for name in [
            "linux/amd64",
            "linux/x86_64",
            "/x86-64",
            "Linux/AMD64/v1",
            "LINUX/X86_64/V1",
        ] {
            assert_eq!(platform(name).rank_on(X86), Some(9), "{name}");
            assert_eq!(platform(name).rank_on(ARM), None, "{name}");
        }
        for name in [
            "linux/arm64",
            "linux/aarch64",
            "/ARM64/v8",
            "linux/arm64/8",
            "linux/aarch64/V8.0",
        ] {
            assert_eq!(platform(name).rank_on(ARM), Some(0), "{name}");
            assert_eq!(platform(name).rank_on(X86), None, "{name}");
        }
        for name in ["linux/386", "linux/i386", "/I386/v9"] {
            assert_eq!(platform(name).rank_on(X86), Some(20), "{name}");
        }
        for name in [
            "linux/arm",
            "linux/armhf",
            "linux/arm/7",
            "/arm/V7",
            "linux/armhf/x",
        ] {
            assert_eq!(platform(name).rank_on(OLD_ARM), Some(20), "{name}");
        }
        for name in ["linux/armel", "linux/arm/v6", "linux/arm/6"] {
            assert_eq!(platform(name).rank_on(OLD_ARM), Some(21), "{name}");
        }
    }

    #[test]
    fn the_nearest_comes_first_and_what_does_not_run_never() {
        for (host, names) in [
            (
                X86,
                &[
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/x86_64",
                    "linux/386",
                ][..],
            ),
            (
                ARM,
                &[
                    "linux/aarch64",
                    "linux/arm64/v8.2",
                    "linux/arm/v8",
                    "linux/armhf",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ],
            ),
            (OLD_ARM, &["linux/arm", "linux/armel", "linux/arm/v5"]),
        ] {
            let ranks: Vec<_> = names
                .iter()
                .map(|name| platform(name).rank_on(host).unwrap())
                .collect();
            assert!(
                ranks.is_sorted() && ranks.first() < ranks.last(),
                "{ranks:?}"
            );
        }
        for (host, name) in [
            (X86, "linux/amd64/v4"),
            (X86, "linux/amd64/v0"),
            (X86, "linux/amd64/new"),
            (X86, "macos/amd64"),
            (X86, "unknown/unknown"),
            (X86, "linux/arm/v7"),
            (ARM, "linux/arm64/v9"),
            (ARM, "linux/arm/v4"),
            (ARM, "linux/386"),
            (OLD_ARM, "linux/arm/v8"),
            (OLD_ARM, "linux/arm64"),
        ] {
            assert_eq!(platform(name).rank_on(host), None, "{name}");
        }
    }

    #[test]
    fn what_is_left_out_may_be_this_machine() {
        for name in ["", "linux", "LINUX//v8"] {
            let platform = platform(name);
            assert!(platform.is_unsaid() && platform.runs_here(), "{name}");
        }
        assert!(!platform("windows").runs_here());
        assert!(!platform("/amd64").is_unsaid());
        assert_eq!(platform("/a\nb").to_string(), r#""linux/a\nb""#);
    }

    #[test]
    fn machines_are_told_plainly_and_only_names_are_some() {
        for (name, plain, some) in [
            ("", "", true),
            ("linux/s390x", "linux/s390x", true),
            ("/arm64/v8", "linux/arm64/v8", true),
            ("Linux//v8", "Linux", true),
            ("windows/amd64", "windows/amd64", false),
            ("linux/s390x\nlevel=error", "linux/s390xlevel=error", false),
            ("linux/a\u{1b}[2J/v\u{e4}", "linux/a[2J/v", false),
        ] {
            let platform = platform(name);
            let told = (platform.plain(), platform.is_some_linux());
            assert_eq!(told, (plain.to_owned(), some), "{name:?}");
        }
    }

    #[test]
    fn versions_of_arm_are_those_of_the_kernel() {
        for (machine, version) in [
            ("armv7l", 7),
            ("armv6l", 6),
            ("aarch64", 8),
            ("armv8l", 8),
            ("x", 7),
        ] {
            assert_eq!(arm_version(machine.as_bytes()), version, "{machine}");
        }
    }
}
