//! The tools' side of the stage's socket, and how they start a flusher.
//!
//! Every wait is bounded by the protocol's silence limit: a flusher at work says so every second. Nothing here may
//! touch the stage's files.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use serde_json::Value;
use sheaf_common::configuration::VARIABLES;
use sheaf_common::layout;
use sheaf_common::protocol::{self, IN_PROGRESS, Kind, PAYLOAD_MAX, REPLY_HEADER, SILENCE_LIMIT_MS};

use crate::settings::Settings;

/// How long a new flusher may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a flusher that is starting or leaving.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its meaning depends on the request.
    pub value: u64,
    /// Its meaning depends on the request.
    pub payload: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens in this stage.
    NoFlusher(PathBuf),
    /// Another user, of this id, listens in this stage.
    Stranger(PathBuf, u32),
    /// A system call on the socket failed.
    System(PathBuf, io::Error),
    /// The flusher said nothing for the protocol's silence limit.
    Silent(PathBuf),
    /// The flusher ended while it was asked.
    Closed(PathBuf),
    /// The answer is not one of this version's.
    Malformed(PathBuf),
    /// The flusher refused or failed, with this error.
    Refused(PathBuf, Errno),
    /// The store, of this path, has taken nothing for this time.
    Stuck(PathBuf, Duration),
    /// A flusher could not be started.
    NotStarted(PathBuf, String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::NoFlusher(stage) => write!(formatter, "no flusher serves the stage {}", stage.display()),
            ClientError::Stranger(stage, user) => {
                write!(formatter, "user {user} listens in {}: choose another SHEAF_STAGE", stage.display())
            }
            ClientError::System(stage, error) => {
                write!(formatter, "cannot talk to the flusher of {}: {error}", stage.display())
            }
            ClientError::Silent(stage) => write!(
                formatter,
                "the flusher of {} has said nothing for {} s: the store's file system may hang",
                stage.display(),
                SILENCE_LIMIT_MS / 1000
            ),
            ClientError::Closed(stage) => {
                write!(formatter, "the flusher of {} ended before it answered", stage.display())
            }
            ClientError::Malformed(stage) => write!(
                formatter,
                "the flusher of {} speaks another version: use the sheaf program that belongs to it",
                stage.display()
            ),
            ClientError::Refused(stage, errno) => {
                write!(formatter, "the flusher of {} could not do it: {errno}", stage.display())
            }
            ClientError::Stuck(store, time) => {
                let seconds = time.as_secs();
                write!(formatter, "{} has taken nothing for {seconds} s (SHEAF_STORE_TIMEOUT)", store.display())
            }
            ClientError::NotStarted(stage, why) => {
                write!(formatter, "no flusher could be started for {}: {why}", stage.display())
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// A connection to the flusher of one stage.
#[derive(Debug)]
pub struct Client {
    stage: PathBuf,
    socket: OwnedFd,
}

impl Client {
    /// Connects to the flusher of a stage.
    ///
    /// # Errors
    /// [`ClientError::NoFlusher`] when none listens.
    pub fn connect(stage: &Path) -> Result<Client, ClientError> {
        let failed = |errno: Errno| match errno {
            Errno::NOENT | Errno::CONNREFUSED => ClientError::NoFlusher(stage.to_path_buf()),
            other => ClientError::System(stage.to_path_buf(), other.into()),
        };
        let address = SocketAddrUnix::new(stage.join(layout::SOCKET)).map_err(failed)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
        // Bounds connect(2) as well, which blocks while the listener's queue is full.
        let limit = Some(Duration::from_millis(SILENCE_LIMIT_MS));
        set_socket_timeout(&socket, Timeout::Send, limit).map_err(failed)?;
        rustix::io::retry_on_intr(|| connect(&socket, &address)).map_err(|errno| match errno {
            Errno::AGAIN => ClientError::Silent(stage.to_path_buf()),
            other => failed(other),
        })?;
        let listener = socket_peercred(&socket).map_err(failed)?.uid;
        if listener != rustix::process::geteuid() {
            return Err(ClientError::Stranger(stage.to_path_buf(), listener.as_raw()));
        }
        Ok(Client { stage: stage.to_path_buf(), socket })
    }

    /// Sends one request and waits for its final answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn request(&self, kind: Kind, payload: &[u8]) -> Result<Reply, ClientError> {
        self.request_with_progress(kind, payload, &mut |_| Ok(()))
    }

    /// What the flusher says of itself; null when that makes no sense.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Value, ClientError> {
        let reply = self.request(Kind::Status, &[])?;
        Ok(serde_json::from_slice(&reply.payload).unwrap_or_default())
    }

    /// As [`Client::request`]; `progress` is called with the bytes done so far whenever the flusher says. Its error
    /// ends the waiting.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn request_with_progress(
        &self,
        kind: Kind,
        payload: &[u8],
        progress: &mut dyn FnMut(u64) -> Result<(), ClientError>,
    ) -> Result<Reply, ClientError> {
        let mut packet = protocol::Request { kind, payload_length: payload.len() }.encode().to_vec();
        packet.extend_from_slice(payload);
        rustix::io::retry_on_intr(|| send(&self.socket, &packet, SendFlags::NOSIGNAL)).map_err(|e| self.failed(e))?;
        let mut buffer = vec![0; REPLY_HEADER + PAYLOAD_MAX];
        loop {
            let packet = self.receive(&mut buffer)?;
            let malformed = || ClientError::Malformed(self.stage.clone());
            let reply = protocol::Reply::decode(packet).map_err(|_| malformed())?;
            match reply.status {
                0 => {
                    let payload = packet.get(REPLY_HEADER..).unwrap_or_default().to_vec();
                    return Ok(Reply { value: reply.value, payload });
                }
                IN_PROGRESS => progress(reply.value)?,
                errno if errno > 0 => {
                    return Err(ClientError::Refused(self.stage.clone(), Errno::from_raw_os_error(errno)));
                }
                _ => return Err(malformed()),
            }
        }
    }

    fn receive<'buffer>(&self, buffer: &'buffer mut [u8]) -> Result<&'buffer [u8], ClientError> {
        let limit = Duration::from_millis(SILENCE_LIMIT_MS);
        if !readable(&self.socket, limit).map_err(|errno| self.failed(errno))? {
            return Err(ClientError::Silent(self.stage.clone()));
        }
        let (_, length) = rustix::io::retry_on_intr(|| recv(&self.socket, &mut *buffer, RecvFlags::empty()))
            .map_err(|errno| self.failed(errno))?;
        match buffer.get(..length) {
            Some(packet) if length > 0 => Ok(packet),
            _ => Err(ClientError::Closed(self.stage.clone())),
        }
    }

    fn failed(&self, errno: Errno) -> ClientError {
        match errno {
            Errno::PIPE | Errno::CONNRESET => ClientError::Closed(self.stage.clone()),
            other => ClientError::System(self.stage.clone(), other.into()),
        }
    }
}

/// Waits until there is something to read or the other end is gone; false when `limit` has passed.
fn readable(socket: impl AsFd, limit: Duration) -> Result<bool, Errno> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Connects to the flusher of an existing or future stage, and starts one when none runs.
///
/// # Errors
/// [`ClientError::NotStarted`] says why there is none.
pub fn connect_or_start(settings: &Settings, stage: &Path) -> Result<Client, ClientError> {
    match Client::connect(stage) {
        Err(ClientError::NoFlusher(_)) => start_flusher(settings, stage),
        result => result,
    }
}

/// Starts a detached flusher, which makes the stage directory, and waits until it answers.
///
/// # Errors
/// When it ends at once or does not answer in time.
pub fn start_flusher(settings: &Settings, stage: &Path) -> Result<Client, ClientError> {
    let failed = |why: String| ClientError::NotStarted(stage.to_path_buf(), why);
    let program = std::env::current_exe().map_err(|error| failed(format!("this program's own path: {error}")))?;
    let mut child = flusher_command(settings, &program)
        .spawn()
        .map_err(|error| failed(format!("{}: {error}", program.display())))?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        // Looked at first: the last attempt to connect must come after the end that it explains.
        let ended = child.try_wait().ok().flatten();
        match Client::connect(stage).and_then(|client| client.request(Kind::Status, &[]).map(|_| client)) {
            Ok(client) => return Ok(client),
            Err(ClientError::NoFlusher(_) | ClientError::Closed(_)) => {}
            Err(error) => return Err(error),
        }
        if let Some(status) = ended {
            return Err(failed(format!("it ended with {status}; set SHEAF_LOG=info,FILE to see why")));
        }
        if Instant::now() >= deadline {
            return Err(failed(format!("it did not answer within {} s", START_LIMIT.as_secs())));
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

fn flusher_command(settings: &Settings, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("flusher").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for name in ["LD_PRELOAD", "LD_AUDIT"].into_iter().chain(VARIABLES.iter().map(|variable| variable.name)) {
        command.env_remove(name);
    }
    command.envs(settings.variables().iter().map(|(name, value)| (name, value)));
    // SAFETY: between fork and exec the closure only makes async-signal-safe calls (setsid, sigemptyset, sigprocmask)
    // on memory of its own stack frame, and it allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    command
}

/// Waits until the stage's flusher has ended, at most `limit`. True when it is gone.
///
/// A flusher holds the stage's lock for its whole life, also while it leaves and listens no more.
///
/// # Errors
/// When the lock cannot be looked at.
pub fn wait_for_end(stage: &Path, limit: Duration) -> io::Result<bool> {
    let lock = match File::open(stage.join(layout::LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let deadline = Instant::now() + limit;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(false),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(RETRY_PAUSE),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{accept, bind, listen};
    use sheaf_common::protocol::{REQUEST_HEADER, Request};

    /// A stage whose socket is served once: `answers` are sent to the first request, which is returned.
    fn served(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<u8>>) {
        let stage = tempfile::tempdir_in("/dev/shm").unwrap();
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(stage.path().join(layout::SOCKET)).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let server = std::thread::spawn(move || {
            let peer = accept(&listener).unwrap();
            let mut buffer = vec![0; REQUEST_HEADER + PAYLOAD_MAX];
            let (_, length) = recv(&peer, &mut buffer, RecvFlags::empty()).unwrap();
            buffer.truncate(length);
            for answer in answers {
                send(&peer, &answer, SendFlags::NOSIGNAL).unwrap();
            }
            buffer
        });
        (stage, server)
    }

    fn answer(status: i32, value: u64, payload: &[u8]) -> Vec<u8> {
        let mut packet = protocol::Reply { status, value, payload_length: payload.len() }.encode().to_vec();
        packet.extend_from_slice(payload);
        packet
    }

    #[test]
    fn progress_is_passed_on_and_the_final_answer_returned() {
        let (stage, server) =
            served(vec![answer(IN_PROGRESS, 1, b""), answer(IN_PROGRESS, 2, b""), answer(0, 7, b"payload")]);
        let mut seen = Vec::new();
        let client = Client::connect(stage.path()).unwrap();
        let reply = client
            .request_with_progress(Kind::Hydrate, b"/a", &mut |value| {
                seen.push(value);
                Ok(())
            })
            .unwrap();
        assert_eq!((reply.value, &reply.payload[..], &seen[..]), (7, &b"payload"[..], &[1, 2][..]));
        let request = server.join().unwrap();
        assert_eq!(Request::decode(&request), Ok(Request { kind: Kind::Hydrate, payload_length: 2 }));
        assert_eq!(&request[REQUEST_HEADER..], b"/a");
    }

    #[test]
    fn failures_are_told_apart() {
        let stage = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(matches!(Client::connect(stage.path()), Err(ClientError::NoFlusher(_))));
        let ask = |answers| {
            let (stage, _server) = served(answers);
            Client::connect(stage.path()).unwrap().request(Kind::Wait, &[])
        };
        assert!(matches!(ask(vec![answer(5, 0, b"")]), Err(ClientError::Refused(_, Errno::IO))));
        assert!(matches!(ask(vec![b"noise".to_vec()]), Err(ClientError::Malformed(_))));
        assert!(matches!(ask(vec![]), Err(ClientError::Closed(_))));
    }

    #[test]
    fn a_socket_that_a_dead_flusher_left_is_no_flusher() {
        let (stage, server) = served(vec![answer(0, 0, b"")]);
        Client::connect(stage.path()).unwrap().request(Kind::Hello, &[]).unwrap();
        server.join().unwrap();
        assert!(matches!(Client::connect(stage.path()), Err(ClientError::NoFlusher(_))));
    }

    #[test]
    fn the_end_of_the_lock_is_the_end_of_the_flusher() {
        let stage = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(wait_for_end(stage.path(), Duration::ZERO).unwrap());
        let lock = File::create(stage.path().join(layout::LOCK)).unwrap();
        assert!(wait_for_end(stage.path(), Duration::ZERO).unwrap());
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        assert!(!wait_for_end(stage.path(), Duration::from_millis(1)).unwrap());
        let directory = stage.path().to_path_buf();
        let waiter = std::thread::spawn(move || wait_for_end(&directory, Duration::from_secs(20)).unwrap());
        drop(lock);
        assert!(waiter.join().unwrap());
    }
}
