//! Hydration: a stub gets its data back from an aggregate, in the same inode, checked by CRC before anybody sees it.
//!
//! The file stays marked as a stub until every byte is right; on any failure it stays a stub.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sheaf_common::layout::STUB_BIT;

use super::Shared;
use super::watcher::Command;
use crate::aggregate::Attributes;
use crate::settings::Damaged;
use crate::stage::lease::{self, Lease};
use crate::stage::mirror;
use crate::stage::room::Room;
use crate::stage::tracker::attributes;
use crate::store::{DataLoss, Helpers, Version, VersionReader};

/// How often room is made for a file that finds none.
const ROOM_ATTEMPTS: u32 = 4;

/// Inodes that are being hydrated: one thread does it, with some help, the others wait for it.
#[derive(Debug, Default)]
pub struct Hydrations {
    running: Mutex<HashSet<u64>>,
    done: Condvar,
    helpers: Helpers,
    /// Bytes brought back so far by all: while it grows, the store answers.
    pub bytes: AtomicU64,
}

/// Makes the file at `path` resident.
///
/// # Errors
/// `EIO` when no intact data can be had, or what the file system of the stage answers.
pub fn hydrate(shared: &Shared, path: &[u8]) -> Result<(), Errno> {
    if !shared.reading.await_compared(shared.settings.timeout) {
        return Err(Errno::IO);
    }
    let location = shared.stage.tree_path(path);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::PATH;
    let stub = File::from(rustix::fs::open(&location, flags, Mode::empty())?);
    let inode = stub.metadata().map_err(errno)?.ino();
    let mut running = shared.hydrations.running.lock();
    while !running.insert(inode) {
        shared.hydrations.done.wait(&mut running);
    }
    drop(running);
    let result = hydrate_alone(shared, path, &stub);
    shared.hydrations.running.lock().remove(&inode);
    shared.hydrations.done.notify_all();
    result
}

fn hydrate_alone(shared: &Shared, path: &[u8], stub: &File) -> Result<(), Errno> {
    let metadata = stub.metadata().map_err(errno)?;
    if metadata.mode() & STUB_BIT == 0 {
        return Ok(());
    }
    // The stub's own: a program may have changed them since its version was recorded.
    let attributes = attributes(&rustix::fs::fstat(stub)?);
    if !shared.stubs.knows(metadata.ino()) {
        let text = format!("no version in the store belongs to the stub /{}", path.escape_ascii());
        return Err(failed(shared, text));
    }
    let reopened = format!("/proc/self/fd/{}", stub.as_raw_fd());
    let (reader, writer) = open_both(&reopened, metadata.mode())?;
    // A flusher that dies meanwhile leaves the stub with other times: this tells which it had.
    shared.stage.note_times(metadata.ino(), &attributes).map_err(errno)?;
    match fill_with_room(shared, &metadata, &writer) {
        Ok(None) => make_resident(shared, &attributes, writer, reader).map_err(errno)?,
        Ok(Some(older)) => {
            let path = path.escape_ascii();
            log::warn!("/{path}: its newest version is damaged; an older one takes its place (SHEAF_DAMAGED)");
            shared.stubs.forget(metadata.ino());
            // Its close counts as a program's: it is published, and so becomes the newest version.
            mirror::restore(&writer, &older.attributes, false).map_err(errno)?;
        }
        Err(error) => {
            let _ = writer.set_len(metadata.len());
            let _ = mirror::drop_data(&writer, metadata.len());
            let _ = mirror::restore(&writer, &attributes, true);
            shared.stage.forget_times(metadata.ino());
            return Err(failed(shared, format!("cannot bring back /{}: {error}", path.escape_ascii())));
        }
    }
    // Its version stays known: the file may be evicted again by now, and that is all that tells where its data is.
    shared.stage.forget_times(metadata.ino());
    shared.set_error("hydrate", None);
    log::debug!("hydrated /{} ({} bytes)", path.escape_ascii(), metadata.len());
    Ok(())
}

/// Fills the file when there is room for it. Others may be faster and take the room that was made: then once more.
fn fill_with_room(shared: &Shared, stub: &Metadata, writer: &File) -> io::Result<Option<Version>> {
    for _ in 1..ROOM_ATTEMPTS {
        make_room(shared, stub.len());
        match fill(shared, stub.ino(), writer) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => mirror::drop_data(writer, stub.len())?,
            outcome => return outcome,
        }
    }
    make_room(shared, stub.len());
    fill(shared, stub.ino(), writer)
}

/// Has the watcher make room for what comes back, and for the little that else is written meanwhile. Without it the
/// attempt says what is wrong.
fn make_room(shared: &Shared, bytes: u64) {
    let Ok(room) = Room::look(&shared.stage) else { return };
    let wanted_bytes = bytes.saturating_add(room.reserve());
    if room.free >= wanted_bytes {
        return;
    }
    let (sender, receiver) = bounded(1);
    shared.commands.send(Command::Room { wanted_bytes, process: None, reply: sender });
    let _ = receiver.recv_timeout(shared.settings.timeout);
}

/// Fills a file with its version's data; or with that of an older one, if it is damaged and SHEAF_DAMAGED allows it.
fn fill(shared: &Shared, inode: u64, writer: &File) -> io::Result<Option<Version>> {
    // Opened when nobody holds the store any more: its file system, or a further tier, may not answer.
    let located = shared.stubs.locate(&shared.store.read(), inode)?;
    let reader = located.open()?;
    let fill_from = |reader: &VersionReader| {
        writer.set_len(reader.version().size)?;
        let take = |offset: u64, bytes: &[u8]| {
            writer.write_all_at(bytes, offset)?;
            shared.hydrations.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(())
        };
        reader.copy_unordered(&shared.hydrations.helpers, &take)
    };
    let Err(error) = fill_from(&reader) else { return Ok(None) };
    let is_damage = error.get_ref().is_some_and(|inner| inner.is::<DataLoss>());
    match reader.older().filter(|_| is_damage && shared.settings.damaged == Damaged::Older) {
        None => Err(error),
        Some(older) => {
            writer.set_len(0)?;
            fill_from(&older).map(|()| Some(older.version().clone()))
        }
    }
}

/// Opens a stub for reading and for writing, even if its mode forbids that to its owner.
fn open_both(reopened: &str, mode: u32) -> Result<(File, File), Errno> {
    let open = || {
        let reader = rustix::fs::open(reopened, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let writer = rustix::fs::open(reopened, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok((File::from(reader), File::from(writer)))
    };
    open().or_else(|_: Errno| {
        rustix::fs::chmod(reopened, Mode::from_raw_mode(mode & 0o7777) | Mode::RUSR | Mode::WUSR)?;
        open()
    })
}

/// Closes the writing descriptor so that the watcher knows its event as ours, then takes the stub's mark away.
fn make_resident(shared: &Shared, attributes: &Attributes, writer: File, reader: File) -> io::Result<()> {
    mirror::restore(&writer, attributes, true)?;
    let inode = reader.metadata()?.ino();
    let kept = reader.try_clone()?;
    {
        // Held across the close: the watcher looks here before it takes the close for a program's.
        let mut hydrated = shared.hydrated.lock();
        drop(writer);
        if lease::take_read(reader.as_fd())? == Lease::Granted {
            hydrated.insert(inode, (reader, Instant::now()));
        }
    }
    mirror::restore(&kept, attributes, false)
}

fn failed(shared: &Shared, text: String) -> Errno {
    log::error!("{text}");
    shared.set_error("hydrate", Some(text));
    Errno::IO
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
