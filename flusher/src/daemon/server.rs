//! The stage's Unix socket: who asks, what they ask, and the promise that they hear something while they wait.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with, sockopt,
};
use sheaf_common::layout;
use sheaf_common::protocol::{
    IN_PROGRESS, Kind, PAYLOAD_MAX, PROGRESS_INTERVAL_MS, REQUEST_HEADER, Reply, Request, canonical_path,
};

use super::announce::Announcement;
use super::reading::Known;
use super::watcher::Command;
use super::{Shared, hydrate};
use crate::stage::mirror::Extent;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(PROGRESS_INTERVAL_MS);
/// How long the store may yield no byte at all while something is read back.
const HYDRATE_LIMIT: Duration = Duration::from_secs(60);
/// A connection that asks nothing for so long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
const BACKLOG: i32 = 4096;

/// Makes the socket and listens on it.
///
/// # Errors
/// From bind(2) and listen(2).
pub fn open(shared: &Shared) -> io::Result<OwnedFd> {
    let path = shared.stage.path(layout::SOCKET);
    let _ = std::fs::remove_file(&path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes one connection, if one waits, and serves it in a thread of its own. False when none waits.
///
/// # Errors
/// From accept4(2), or when no thread can be made.
pub fn accept_one(shared: &Arc<Shared>, listener: &OwnedFd) -> io::Result<bool> {
    let connection = match accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(connection) => connection,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let credentials = sockopt::socket_peercred(&connection)?;
    let own = rustix::process::geteuid();
    if credentials.uid != own && !credentials.uid.is_root() {
        log::warn!("refused a connection of user {}", credentials.uid.as_raw());
        return Ok(true);
    }
    sockopt::set_socket_timeout(&connection, sockopt::Timeout::Recv, Some(IDLE_LIMIT))?;
    shared.serving.fetch_add(1, Ordering::SeqCst);
    let shared = shared.clone();
    let peer = Connection { socket: connection, process: credentials.pid };
    let serving = shared.clone();
    let thread = std::thread::Builder::new().name("client".to_string()).stack_size(256 * 1024);
    let started = thread.spawn(move || {
        if let Err(error) = serve(&shared, &peer) {
            log::debug!("client {}: {error}", peer.process.as_raw_nonzero());
        }
        shared.serving.fetch_sub(1, Ordering::SeqCst);
        shared.wake();
    });
    if started.is_err() {
        serving.serving.fetch_sub(1, Ordering::SeqCst);
    }
    started.map(|_| true)
}

struct Connection {
    socket: OwnedFd,
    process: rustix::process::Pid,
}

impl Connection {
    fn reply(&self, status: i32, value: u64, payload: &[u8]) -> io::Result<()> {
        let mut packet = Reply { status, value, payload_length: payload.len() }.encode().to_vec();
        packet.extend_from_slice(payload);
        rustix::io::retry_on_intr(|| send(&self.socket, &packet, SendFlags::NOSIGNAL))?;
        Ok(())
    }
}

/// Answers requests until the peer hangs up.
fn serve(shared: &Arc<Shared>, connection: &Connection) -> io::Result<()> {
    let mut buffer = vec![0; REQUEST_HEADER + PAYLOAD_MAX];
    loop {
        let (_, length) = rustix::io::retry_on_intr(|| recv(&connection.socket, &mut buffer[..], RecvFlags::empty()))?;
        if length == 0 {
            return Ok(());
        }
        let packet = &buffer[..length];
        let Ok(request) = Request::decode(packet) else {
            return connection.reply(Errno::PROTO.raw_os_error(), 0, b"");
        };
        let payload = packet[REQUEST_HEADER..].to_vec();
        log::debug!("client {}: {:?} {}", connection.process.as_raw_nonzero(), request.kind, payload.escape_ascii());
        answer(shared, connection, request.kind, &payload)?;
    }
}

fn answer(shared: &Arc<Shared>, connection: &Connection, kind: Kind, payload: &[u8]) -> io::Result<()> {
    if !matches!(kind, Kind::Status | Kind::Goodbye) {
        shared.needed.store(true, Ordering::SeqCst);
    }
    match kind {
        Kind::Hello => {
            shared.clients.lock().add(connection.process);
            // Whoever asked to drain asked for what was there then.
            shared.draining.store(false, Ordering::SeqCst);
            shared.wake();
            await_known(shared, connection, Known::Compared)?;
            await_announced(shared, connection)?;
            connection.reply(0, shared.news.swap(0, Ordering::SeqCst), b"")
        }
        Kind::CatchUp => {
            await_known(shared, connection, Known::CaughtUp)?;
            let result = if shared.reading.has_caught_up() { Ok(()) } else { Err(Errno::TIMEDOUT) };
            connection.reply(status(result), 0, b"")
        }
        Kind::Refresh => {
            await_known(shared, connection, Known::CaughtUp)?;
            let result = await_refresh(shared, connection, shared.settings.timeout)?;
            connection.reply(status(result), 0, b"")
        }
        Kind::Populate | Kind::PopulateBelow | Kind::Hydrate => match canonical_path(payload) {
            Some(path) if kind != Kind::Hydrate => {
                // What other nodes have published in it meanwhile is to be in it. If that cannot be had, it is what was
                // known.
                let _ = await_refresh(shared, connection, shared.settings.timeout / 2)?;
                let (sender, receiver) = bounded(1);
                let extent = if kind == Kind::Populate { Extent::Directory } else { Extent::Subtree };
                shared.commands.send(Command::Populate(path.to_vec(), extent, sender));
                // A program waits for this: rather pass its call through than hold it up any longer. The watcher is
                // only ever late when the store does not answer.
                let late = if shared.reading.is_read() { Errno::TIMEDOUT } else { Errno::IO };
                let result = wait(connection, &receiver, Some(shared.settings.timeout))?.unwrap_or(Err(late));
                connection.reply(status(result), shared.news.swap(0, Ordering::SeqCst), b"")
            }
            Some(path) => answer_hydrate(shared, connection, path),
            None => connection.reply(Errno::INVAL.raw_os_error(), 0, b""),
        },
        Kind::Room => {
            let wanted_bytes = payload.try_into().map_or(0, u64::from_le_bytes);
            let (sender, receiver) = bounded(1);
            let process = Some(connection.process);
            shared.commands.send(Command::Room { wanted_bytes, process, reply: sender });
            let result = wait(connection, &receiver, None)?.unwrap_or(Ok(()));
            connection.reply(status(result), 0, b"")
        }
        Kind::Sync => match canonical_path(payload) {
            Some(path) => answer_sync(shared, connection, path),
            None => connection.reply(Errno::INVAL.raw_os_error(), 0, b""),
        },
        Kind::Wait => {
            let (sender, receiver) = bounded(1);
            shared.commands.send(Command::Wait(sender));
            let left = wait(connection, &receiver, None)?.unwrap_or_default();
            connection.reply(0, (left.written + left.unreadable) as u64, b"")
        }
        Kind::Status => {
            let text = serde_json::to_vec(&shared.status_report()).map_err(io::Error::other)?;
            connection.reply(0, 0, &text)
        }
        Kind::Goodbye => {
            let mut clients = shared.clients.lock();
            clients.remove(connection.process);
            clients.forget_dead();
            let left = clients.len() as u64;
            drop(clients);
            connection.reply(0, left, b"")
        }
        Kind::Drain => {
            shared.draining.store(true, Ordering::SeqCst);
            let (sender, receiver) = bounded(1);
            shared.commands.send(Command::Finish(sender));
            let left = wait(connection, &receiver, None)?.unwrap_or_default();
            let status = if left.unreadable > 0 { Errno::IO.raw_os_error() } else { 0 };
            connection.reply(status, left.written as u64, b"")
        }
    }
}

fn status(result: Result<(), Errno>) -> i32 {
    result.err().map_or(0, Errno::raw_os_error)
}

/// Hydrates in a thread of its own, so that the peer hears something however slow the store is; as long as anything
/// comes back from it.
fn answer_hydrate(shared: &Arc<Shared>, connection: &Connection, path: &[u8]) -> io::Result<()> {
    let (sender, receiver) = bounded(1);
    let (working, path) = (shared.clone(), path.to_vec());
    std::thread::Builder::new().name("hydrate".to_string()).spawn(move || {
        let _ = sender.send(hydrate::hydrate(&working, &path));
    })?;
    let mut seen = 0;
    loop {
        if let Some(result) = wait(connection, &receiver, Some(HYDRATE_LIMIT))? {
            return connection.reply(status(result), 0, b"");
        }
        let bytes = shared.hydrations.bytes.load(Ordering::Relaxed);
        if bytes == seen {
            return connection.reply(Errno::TIMEDOUT.raw_os_error(), 0, b"");
        }
        seen = bytes;
    }
}

/// Waits until a file is durable, as long as the store takes anything.
fn answer_sync(shared: &Shared, connection: &Connection, path: &[u8]) -> io::Result<()> {
    let (sender, receiver) = bounded(1);
    shared.commands.send(Command::Sync(path.to_vec(), sender));
    let mut seen = None;
    loop {
        let progress = (shared.stored.load(Ordering::SeqCst), shared.written_bytes.load(Ordering::Relaxed));
        if seen.replace(progress) == Some(progress) {
            return connection.reply(Errno::IO.raw_os_error(), 0, b"");
        }
        if let Some(result) = wait(connection, &receiver, Some(shared.settings.store_timeout))? {
            return connection.reply(status(result), 0, b"");
        }
    }
}

/// What this process does may be seen on other nodes: this one must be known there first. But nobody waits long for a
/// store that does not answer.
fn await_announced(shared: &Arc<Shared>, connection: &Connection) -> io::Result<()> {
    let (sender, receiver) = bounded(1);
    let done = move || {
        let _ = sender.send(());
    };
    match Announcement::make(shared, done) {
        Some(limit) => wait(connection, &receiver, Some(limit)).map(drop),
        None => Ok(()),
    }
}

/// What a program removes before the tree has been compared with the store would not be known for a removal, if another
/// node has published it. It goes on without that when the store cannot be read.
fn await_known(shared: &Shared, connection: &Connection, wanted: Known) -> io::Result<()> {
    let (start, limit) = (Instant::now(), shared.settings.timeout);
    while !shared.reading.await_for(wanted, PROGRESS_INTERVAL / 2) {
        if shared.reading.is_given_up(limit) || start.elapsed() >= limit {
            break;
        }
        connection.reply(IN_PROGRESS, 0, b"")?;
    }
    Ok(())
}

/// Waits until what other nodes have published by now has been read, and is shown.
fn await_refresh(
    shared: &Arc<Shared>,
    connection: &Connection,
    limit: Duration,
) -> io::Result<std::result::Result<(), Errno>> {
    let (sender, receiver) = bounded(1);
    let limit = shared.refreshes.limit(limit);
    if !shared.reading.has_caught_up() || !shared.refreshes.ask(sender) {
        return Ok(Err(Errno::TIMEDOUT));
    }
    Ok(wait(connection, &receiver, Some(limit))?.unwrap_or(Err(Errno::TIMEDOUT)))
}

/// Waits for the watcher's answer, and lets the peer hear that somebody is at work. `None` when `limit` has passed.
fn wait<T>(connection: &Connection, receiver: &Receiver<T>, limit: Option<Duration>) -> io::Result<Option<T>> {
    let start = Instant::now();
    loop {
        match receiver.recv_timeout(PROGRESS_INTERVAL / 2) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) if limit.is_some_and(|limit| start.elapsed() >= limit) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => connection.reply(IN_PROGRESS, 0, b"")?,
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the watcher thread has ended")),
        }
    }
}
