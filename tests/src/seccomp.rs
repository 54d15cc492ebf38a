//! Forbids io_uring to a program and all that it starts, as containers do. It must stay callable between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Allows every call but `io_uring_setup`, which fails with `EPERM`.
static FILTER: [libc::sock_filter; 4] = [
    // The call's number is the first word of seccomp_data.
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: 1,
        k: libc::SYS_io_uring_setup as u32,
    },
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
];

/// Makes the command run without io_uring.
pub fn forbid_io_uring(command: &mut Command) {
    // SAFETY: the hook only makes two prctl calls on static data: it neither allocates nor locks.
    unsafe { command.pre_exec(install) };
}

fn install() -> io::Result<()> {
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers; the filter program is static and the kernel only reads it.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
