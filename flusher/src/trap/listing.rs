//! Directory listings of trapped programs: the real names and those that only the tree has, as the library lists them.
//!
//! Where a listing stands is the offset of the program's own descriptor, so that rewinding, seeking, dup and fork need
//! nothing here. The offset counts records of a snapshot; offset 0 begins a new one.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::fs::SeekFrom;

use super::calls::Call;
use super::notification::Answer;

/// Listings that are remembered; of others a new snapshot is taken in the middle.
const SNAPSHOTS_MAX: usize = 64;
/// Bytes of `struct linux_dirent64` before the name.
const HEAD: usize = 19;

/// Whose listing of which directory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    process: u32,
    descriptor: i32,
    device: u64,
    inode: u64,
}

struct Snapshot {
    key: Key,
    records: Vec<Vec<u8>>,
}

/// The listings under way.
#[derive(Default)]
pub struct Listings(Mutex<Vec<Snapshot>>);

impl Listings {
    fn take(&self, key: Key) -> Option<Snapshot> {
        let mut snapshots = self.0.lock();
        let index = snapshots.iter().position(|snapshot| snapshot.key == key)?;
        Some(snapshots.remove(index))
    }

    fn keep(&self, snapshot: Snapshot) {
        let mut snapshots = self.0.lock();
        if snapshots.len() >= SNAPSHOTS_MAX {
            snapshots.remove(0);
        }
        snapshots.push(snapshot);
    }
}

/// getdents64(2) on a directory that concerns the library.
///
/// # Errors
/// When the program's memory or descriptor cannot be used.
pub fn read(call: &Call<'_>, descriptor: i32, buffer: u64, size: u32) -> io::Result<Answer> {
    let process = call.target.identity().ok_or(io::ErrorKind::NotFound)?.process;
    let shared = call.target.share_descriptor(process, descriptor)?;
    call.require_caller()?;
    let directory = rustix::fs::fstat(&shared)?;
    let key = Key { process, descriptor, device: directory.st_dev, inode: directory.st_ino };
    let position = rustix::fs::seek(&shared, SeekFrom::Current(0))? as usize;
    let known = call.listings.take(key).filter(|_| position > 0);
    let Some(snapshot) = known.or_else(|| Some(Snapshot { key, records: list(call.path)? })) else {
        return Ok(Answer::Native);
    };
    let outcome = hand_over(call, &shared, &snapshot.records, position, (buffer, size));
    if snapshot.records.len() > position {
        call.listings.keep(snapshot);
    }
    outcome
}

/// Writes as many records as there is room for, and moves the program's offset behind them.
fn hand_over(
    call: &Call<'_>,
    shared: &OwnedFd,
    records: &[Vec<u8>],
    position: usize,
    (buffer, size): (u64, u32),
) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut next = position;
    for record in records.iter().skip(position) {
        if bytes.len() + record.len() > size as usize {
            break;
        }
        bytes.extend_from_slice(record);
        next += 1;
    }
    if bytes.is_empty() {
        return Ok(if next < records.len() { Answer::Error(libc::EINVAL) } else { Answer::Value(0) });
    }
    call.require_caller()?;
    call.target.write(buffer, &bytes)?;
    rustix::fs::seek(shared, SeekFrom::Start(next as u64))?;
    Ok(Answer::Value(bytes.len() as i64))
}

/// All records of a directory, as the kernel would give them; `None` when it cannot be read.
fn list(path: &CStr) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    // SAFETY: a C string; the stream is used by this function alone, and each record only before the next is asked for.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        if stream.is_null() {
            return None;
        }
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = CStr::from_ptr((&raw const (*entry).d_name).cast());
            records.push(record((*entry).d_ino, records.len() as i64 + 1, (*entry).d_type, name));
        }
        libc::closedir(stream);
    }
    Some(records)
}

/// One `struct linux_dirent64`: number, offset of the next, length, type, name; padded to a multiple of 8.
fn record(inode: u64, next: i64, kind: u8, name: &CStr) -> Vec<u8> {
    let name = name.to_bytes_with_nul();
    let length = (HEAD + name.len()).next_multiple_of(8);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&inode.to_ne_bytes());
    bytes.extend_from_slice(&next.to_ne_bytes());
    bytes.extend_from_slice(&(length as u16).to_ne_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(name);
    bytes.resize(length, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_the_kernel() {
        let bytes = record(0x0102, 3, libc::DT_REG, c"abcd");
        assert_eq!(bytes.len(), 24);
        assert_eq!(bytes[..8], 0x0102u64.to_ne_bytes());
        assert_eq!(bytes[8..16], 3i64.to_ne_bytes());
        assert_eq!(bytes[16..18], 24u16.to_ne_bytes());
        assert_eq!(bytes[18], libc::DT_REG);
        assert_eq!(&bytes[19..], b"abcd\0");
        assert_eq!(record(1, 1, 0, c"abcde").len(), 32);
    }

    #[test]
    fn a_directory_is_listed_once_and_in_order_of_offsets() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let path = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        let records = list(&path).unwrap();
        let offsets: Vec<_> = records.iter().map(|record| i64::from(record[8])).collect();
        assert_eq!(offsets, [1, 2, 3, 4]);
        assert!(list(c"/nowhere-sheaf").is_none());
    }
}
