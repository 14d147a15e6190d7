//! `pause`: holds a pod's namespaces. As pid 1 of a shared PID namespace it reaps orphans; it ends at
//! SIGTERM or SIGINT. No library, no heap, no writable memory but the stack.
//!
//! Compiled on its own by `compile.rs` (see there), not by cargo.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

/// System call numbers (include/uapi/asm-generic/unistd.h and the x86-64 table).
#[cfg(target_arch = "x86_64")]
mod call {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod call {
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const PRCTL: usize = 167;
    pub const WAIT4: usize = 260;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_BLOCK: usize = 0;
const PR_SET_NAME: usize = 15;
const WNOHANG: usize = 1;
/// A wait is interrupted when the process is stopped and continued, but not so often in a row: the pod's filter
/// refuses it. A tenth of a second of asking.
const REFUSED: u32 = 1 << 20;
/// Size of the kernel's signal set in bytes.
const SET: usize = 8;

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {main}", "ud2",
    main = sym main, options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "mov x30, #0", "bl {main}", "brk #1", main = sym main);

/// A system call of up to four arguments.
///
/// # Safety
/// As the call itself asks.
unsafe fn system(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the registers are those of the x86-64 convention; the kernel changes rcx and r11 besides.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the registers are those of the arm64 convention.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, options(nostack));
    }
    result
}

extern "C" fn main() -> ! {
    let mask: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    let mask_at = &raw const mask as usize;
    // SAFETY: the name ends in zero; the mask is as large as said and lives for ever.
    unsafe {
        system(call::PRCTL, PR_SET_NAME, c"pause".as_ptr() as usize, 0, 0);
        // Blocked signals stay pending even for a pid 1, which otherwise gets none without a handler.
        system(call::RT_SIGPROCMASK, SIG_BLOCK, mask_at, 0, SET);
    }
    let mut interrupted = 0;
    while interrupted < REFUSED {
        // SAFETY: as above; neither siginfo nor a timeout is wanted.
        match unsafe { system(call::RT_SIGTIMEDWAIT, mask_at, 0, 0, SET) } {
            SIGINT | SIGTERM => break,
            ..=0 => interrupted += 1,
            // One SIGCHLD may stand for many children.
            _ => {
                interrupted = 0;
                // SAFETY: neither status nor usage is wanted.
                while unsafe { system(call::WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {}
            }
        }
    }
    // SAFETY: no pointers; it returns only where the pod's filter refuses it.
    unsafe { system(call::EXIT_GROUP, 0, 0, 0, 0) };
    trap()
}

/// Ends the process by a signal that it cannot ignore.
fn trap() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction raises SIGILL and nothing runs after it.
    unsafe {
        asm!("ud2", options(noreturn, nomem, nostack))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("udf #0", options(noreturn, nomem, nostack))
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
