//! Architectures and their system call numbers.

use syscalls::{aarch64, arm, x86, x86_64};

/// x32 calls are x86-64 calls with this bit set (arch/x86/include/uapi/asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Numbers from here on are ARM's private ones (arch/arm/include/uapi/asm/unistd.h): they say nothing about
/// how new a call is.
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

/// A set of system call numbers and a calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 32-bit x86 programs.
    X86,
    /// x86-64 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM programs.
    Arm,
}

/// The x32 calls that do not share their number with x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_FIRST: u32 = 512;

/// ARM's private calls, from `ARM_PRIVATE` + 1.
const ARM_OWN: [&str; 6] = [
    "breakpoint",
    "cacheflush",
    "usr26",
    "usr32",
    "set_tls",
    "get_tls",
];

impl Arch {
    /// The one that this program was built for.
    pub fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// From the OCI name. `Ok(None)` is one that this page has no table for: no program of it runs here.
    pub(super) fn parse(name: &str) -> Result<Option<Self>, super::Error> {
        const OTHERS: [&str; 14] = [
            "MIPS",
            "MIPS64",
            "MIPS64N32",
            "MIPSEL",
            "MIPSEL64",
            "MIPSEL64N32",
            "PPC",
            "PPC64",
            "PPC64LE",
            "S390",
            "S390X",
            "PARISC",
            "PARISC64",
            "RISCV64",
        ];
        let bare = name.strip_prefix("SCMP_ARCH_").unwrap_or_default();
        match bare {
            "X86_64" => Ok(Some(Self::X86_64)),
            "X86" => Ok(Some(Self::X86)),
            "X32" => Ok(Some(Self::X32)),
            "AARCH64" => Ok(Some(Self::Aarch64)),
            "ARM" => Ok(Some(Self::Arm)),
            "LOONGARCH64" | "M68K" | "SH" | "SHEB" => Ok(None),
            other if OTHERS.contains(&other) => Ok(None),
            _ => Err(super::Error::Architecture(name.to_owned())),
        }
    }

    /// As Docker's `includes.arches` names it (Go's GOARCH).
    pub(super) fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }

    /// Programs of this architecture run on machines of which others.
    pub(super) fn runs_on(self, machine: Self) -> bool {
        match machine {
            Self::X86_64 => matches!(self, Self::X86_64 | Self::X86 | Self::X32),
            Self::Aarch64 => matches!(self, Self::Aarch64 | Self::Arm),
            other => self == other,
        }
    }

    /// `AUDIT_ARCH_*` (include/uapi/linux/audit.h), what seccomp calls `arch`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Arguments have 32 bits.
    pub(super) fn narrow(self) -> bool {
        matches!(self, Self::X86 | Self::Arm)
    }

    /// The number of a call; `None` where there is none of this name. x32 numbers come with their bit.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => name.parse::<x86_64::Sysno>().ok()?.id(),
            Self::X86 => name.parse::<x86::Sysno>().ok()?.id(),
            Self::X32 => return x32_number(name),
            Self::Aarch64 => aarch64_number(name)?.id(),
            Self::Arm => return arm_number(name),
        };
        u32::try_from(number).ok()
    }
}

fn x32_number(name: &str) -> Option<u32> {
    let own = (X32_FIRST..).zip(X32_OWN).find(|(_, own)| *own == name);
    let number = match own {
        Some((number, _)) => number,
        None => u32::try_from(name.parse::<x86_64::Sysno>().ok()?.id()).ok()?,
    };
    Some(number | X32_BIT)
}

/// libseccomp's name for call 79, which the kernel's own table calls `fstatat`.
fn aarch64_number(name: &str) -> Option<aarch64::Sysno> {
    let name = if name == "newfstatat" {
        "fstatat"
    } else {
        name
    };
    name.parse().ok()
}

fn arm_number(name: &str) -> Option<u32> {
    if let Some((number, _)) = (ARM_PRIVATE + 1..)
        .zip(ARM_OWN)
        .find(|(_, own)| *own == name)
    {
        return Some(number);
    }
    u32::try_from(name.parse::<arm::Sysno>().ok()?.id()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_architectures() {
        for (arch, name, number) in [
            (Arch::X86_64, "execve", 59),
            (Arch::X86, "execve", 11),
            (Arch::X32, "execve", X32_BIT + 520),
            (Arch::X32, "read", X32_BIT),
            (Arch::X32, "pwritev2", X32_BIT + 547),
            (Arch::Aarch64, "newfstatat", 79),
            (Arch::Aarch64, "execve", 221),
            (Arch::Arm, "set_tls", 0x000f_0005),
            (Arch::Arm, "execve", 11),
        ] {
            assert_eq!(arch.number(name), Some(number), "{arch:?} {name}");
        }
        assert_eq!(Arch::X86_64.number("no_such_call"), None);
        assert_eq!(Arch::Aarch64.number("open"), None);
    }

    #[test]
    fn names_of_architectures() {
        assert_eq!(Arch::parse("SCMP_ARCH_X32").unwrap(), Some(Arch::X32));
        assert_eq!(Arch::parse("SCMP_ARCH_S390X").unwrap(), None);
        assert!(Arch::parse("X86").is_err() && Arch::parse("SCMP_ARCH_VAX").is_err());
    }
}
