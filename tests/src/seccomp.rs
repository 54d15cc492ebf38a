//! What containers do to programs: calls that are forbidden, a listener that is there already. It must stay callable
//! between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Allows every call but one, which fails with `EPERM`.
const fn all_but(number: libc::c_long) -> [libc::sock_filter; 4] {
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    [
        // The call's number is the first word of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { code: jump, jt: 0, jf: 1, k: number as u32 },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Makes the command run without io_uring.
pub fn forbid_io_uring(command: &mut Command) {
    forbid(command, libc::SYS_io_uring_setup);
}

/// Makes the command run without one system call.
pub fn forbid(command: &mut Command, number: libc::c_long) {
    let filter = all_but(number);
    // SAFETY: the hook only makes system calls on data that it owns: it neither allocates nor locks.
    unsafe { command.pre_exec(move || install(&filter, 0).map(drop)) };
}

/// Makes the command run where fallocate(2) reserves nothing, as where a file system cannot; it frees ranges as ever.
pub fn forbid_reserving(command: &mut Command) {
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { code: jump, jt: 0, jf: 3, k: libc::SYS_fallocate as u32 },
        // The lower half of the second argument, the mode.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 24),
        libc::sock_filter { code: jump, jt: 0, jf: 1, k: 0 },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: as in `forbid`.
    unsafe { command.pre_exec(move || install(&filter, 0).map(drop)) };
}

/// Makes the command run where somebody listens to system calls already. Nothing is announced to the listener, which
/// the command inherits.
pub fn listen(command: &mut Command) {
    let filter = [statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)];
    // SAFETY: as in `forbid`.
    unsafe {
        command.pre_exec(move || {
            let listener = install(&filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
            // The descriptor is the one that the kernel has just made.
            if libc::fcntl(listener, libc::F_SETFD, 0) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

fn install(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers; the kernel only reads the filter.
    let result = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program),
            _ => -1,
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
