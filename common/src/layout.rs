//! Names and marks inside a stage, shared by the library that captures and the flusher that drains.
//!
//! A stage directory holds (`STAGE` is one tier's `sheaf-UID/HASH` directory):
//!
//! | name | what it is |
//! | --- | --- |
//! | `STAGE/tree/ABSOLUTE/PATH` | the captured namespace, as ordinary files, directories and symbolic links |
//! | `STAGE/scratch/` | unwatched room for files that are renamed into the tree, on the same file system |
//! | `STAGE/links/` | second names of captured files on their way into the tree |
//! | `STAGE/moving/` | one file for each directory that is taking another name: both names, each with a NUL behind it |
//! | `STAGE/replaced/` | one file per checkpoint path whose older, unmanaged file still lies on the parallel file system |
//! | `STAGE/socket` | the flusher's Unix socket (`SOCK_SEQPACKET`) |
//! | `STAGE/pulse` | a FIFO that the flusher holds open for reading: opening it for writing fails with `ENXIO` when no flusher lives |
//! | `STAGE/lock` | locked with `flock` by the one living flusher |
//! | `STAGE/starting` | locked with `fcntl` by the process that starts a flusher |
//! | `STAGE/clean` | what the last flusher left unchanged since it was published, so that the next one need not publish it again |
//! | `STAGE/told` | what the flusher tells unasked, as numbers of the machine's; see [`Told`] |
//! | `STAGE/names` | layout `files`: locked with `flock`, shared by whoever takes or changes a name, exclusively by the flusher for moments |
//! | `STAGE/spools` | directories of further tiers, one a line: behind `+` if something may wait there for the store, else `-` |
//! | `STAGE/identity` | the store's path, for people and for `sheaf drain` |
//! | `STAGE/uuid` | what tells this stage from every other, also in the aggregates that are written from it |

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// What the flusher tells unasked.
#[derive(Debug)]
#[repr(C)]
pub struct Told {
    /// A robust futex (see `set_robust_list(2)`): the number of the thread that serves the stage. 0: ask the pulse.
    /// When the thread ends, however that happens, the kernel sets [`FLUSHER_DIED`].
    pub flusher: AtomicU32,
    /// The number of the thread whose mirrors show what other nodes had published when it started. It need not live,
    /// and it need not be the one that serves the stage.
    pub caught_up: AtomicU32,
    /// The list of the futexes that the thread owns: the kernel's, when it ends. It lies here because of private memory
    /// the kernel may have taken everything away by then, from a process that it kills for want of memory.
    pub owned: [AtomicU64; 4],
    /// 1 when what is published takes its own path on the parallel file system and leaves the tree: see [`NAMES`].
    pub publishes_files: AtomicU64,
}

/// `FUTEX_OWNER_DIED`.
pub const FLUSHER_DIED: u32 = 0x4000_0000;

/// The captured namespace below a stage directory.
pub const TREE: &str = "tree";
/// Unwatched directory for files on their way into the tree.
pub const SCRATCH: &str = "scratch";
/// Directory in which a captured file's second name is made before it moves to its place in the tree, so that the
/// flusher learns whose name it is: `INODE-...`, the inode's number in decimal.
pub const LINKS: &str = "links";
/// Directory of words about directories of which the real one moves first and its mirror then: `PROCESS-...`.
pub const MOVING: &str = "moving";
/// Directory of markers for unmanaged files that a capture replaced; see [`marker_name`].
pub const REPLACED: &str = "replaced";
/// The flusher's `SOCK_SEQPACKET` socket.
pub const SOCKET: &str = "socket";
/// FIFO whose reader is the flusher.
pub const PULSE: &str = "pulse";
/// Mode bit of the pulse that says "silent": somebody has waited for the flusher in vain, and nobody else need do so
/// until the flusher takes the bit away again.
pub const SILENT_BIT: u32 = 0o100;
/// `flock`ed by the flusher for its whole life.
pub const LOCK: &str = "lock";
/// Locked by the process that is starting a flusher.
pub const STARTING: &str = "starting";
/// Text file: a line `INODE CTIME_NS SEQUENCE OPERATION_TIME_NS` for each staged file that is what that record
/// published.
pub const CLEAN: &str = "clean";
/// File of a [`Told`], which the library and the flusher map.
pub const TOLD: &str = "told";
/// In layout `files` a published name goes from the tree to the parallel file system. Whoever takes a name, or changes
/// what it means, holds this file's lock meanwhile, shared; the flusher exclusively for the moment in which a name
/// changes sides.
pub const NAMES: &str = "names";
/// Text file with directories of further tiers, one a line.
pub const SPOOLS: &str = "spools";
/// Text file with the store's absolute path.
pub const IDENTITY: &str = "identity";
/// Text file: 32 hexadecimal digits, random.
pub const UUID: &str = "uuid";
/// Default name of the store under the first pattern's fixed prefix, and the reserved first component in aggregates.
pub const STORE: &str = ".sheaf";

/// Mode bit of a regular file in the tree that says "stub": its data is only in an aggregate.
///
/// The sticky bit has no meaning on regular files (inode(7)), every file system stores it, and `stat` yields it with
/// no further call. Programs never see it: the library removes it from every answer.
pub const STUB_BIT: u32 = 0o1000;

/// Mode bit of a directory in the tree that says "populated": it shows every name that Sheaf holds in it.
///
/// Without it a directory of the tree is only walked through. The sticky bit does no harm there: the stage has one
/// user.
pub const POPULATED_BIT: u32 = 0o1000;

/// A directory that is always root's, the real one's: in a container of a user's own, which has no number for him, its
/// owner is the number that stands for him and for everybody else who has none.
pub const OF_ROOT: &CStr = c"/proc/sys";

/// Longest stage directory in bytes, so that the socket's path fits into `sun_path` (unix(7): 108 bytes).
pub const STAGE_PATH_MAX: usize = 96;

/// Writes the 16 hexadecimal digits that name `bytes` in the stage: of the store's path for the stage directory
/// itself, of a checkpoint path for its marker in [`REPLACED`].
pub fn hex_name(bytes: &[u8]) -> [u8; 16] {
    let hash = xxhash_rust::xxh3::xxh3_64(bytes);
    let mut name = [0u8; 16];
    let mut index = 0;
    while index < 16 {
        let nibble = ((hash >> (60 - 4 * index)) & 15) as u8;
        name[index] = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        index += 1;
    }
    name
}

/// The marker's name in [`REPLACED`] for a canonical checkpoint path. What is in it: see [`crate::replaced`].
pub fn marker_name(canonical_path: &[u8]) -> [u8; 16] {
    hex_name(canonical_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sixteen_stable_hexadecimal_digits() {
        let name = hex_name(b"/scratch/run1/.sheaf");
        assert!(name.iter().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_eq!(name, hex_name(b"/scratch/run1/.sheaf"));
        assert_ne!(name, hex_name(b"/scratch/run2/.sheaf"));
    }
}
