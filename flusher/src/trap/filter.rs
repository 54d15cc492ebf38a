//! The kernel's side of the trap: a filter that announces path calls, and how its listener reaches the supervisor.
//!
//! Installing happens between fork and exec: nothing there may allocate or lock. What moves data must never be in
//! the filter: the kernel decides about all other calls without asking anybody.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// What `seccomp_data.arch` says about native calls (linux/audit.h).
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
/// Where `seccomp_data` holds the call's number and the architecture.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

const fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: then, jf: otherwise, k: value }
}

/// The filter that announces these calls and allows all others. Foreign architectures' calls have other numbers, and
/// are allowed.
pub fn program(numbers: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    // Jumps reach 255 statements far; the calls that take a path are a quarter of that.
    let count = numbers.len() as u8;
    let mut program = vec![load(ARCHITECTURE_AT), jump_if_equal(ARCHITECTURE, 0, count + 1), load(NUMBER_AT)];
    program.extend((0..count).rev().zip(numbers).map(|(left, number)| jump_if_equal(*number as u32, left + 1, 0)));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF));
    program
}

/// Traps the calling process and all that it will start, and hands the listener over; or hands over why that cannot be.
///
/// # Errors
/// When not even that can be told.
pub fn install_and_tell(program: &[libc::sock_filter], supervisor: impl AsFd) -> io::Result<()> {
    let outcome = install(program);
    let number = outcome.as_ref().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |_| 0).to_ne_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = outcome.as_ref().map(|listener| [listener.as_fd()]);
    if let Ok(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(supervisor, &[IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn install(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: takes integers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Without it a signal could interrupt a call that has been made already; kernels before 5.19 lack it.
    match seccomp(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => seccomp(listener, &program),
        outcome => outcome,
    }
}

fn seccomp(flags: libc::c_ulong, program: &libc::sock_fprog) -> io::Result<OwnedFd> {
    // SAFETY: the kernel only reads the filter, which the caller keeps.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, closed at exec.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The listener of the program that is being started; the inner error says why it has none.
///
/// # Errors
/// When the program ended before it told.
pub fn await_listener(program: impl AsFd) -> io::Result<io::Result<OwnedFd>> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut number)];
    let receive = || rustix::net::recvmsg(&program, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    if rustix::io::retry_on_intr(receive)?.bytes != size_of::<i32>() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor.ok_or_else(|| io::Error::from_raw_os_error(i32::from_ne_bytes(number))))
}
