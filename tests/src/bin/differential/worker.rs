//! One process of a plan: what it has open, and which function performs which operation.

use libc::c_int;

use crate::answer::{Answer, c_string, done};
use crate::guard::Openings;
use crate::mappings::{Mapping, Memory};
use crate::names::Place;

/// Descriptors that a plan can name.
pub const SLOTS: usize = 6;
/// Mappings and streams that a plan can name.
pub const FEW: usize = 2;
/// Where a slot's descriptor goes when dup2 is to choose a number.
const NUMBER_OF_FIRST_SLOT: c_int = 60;

/// Operations whose arguments are slots or mappings, and numbers.
const ON_DESCRIPTORS: [&str; 26] = [
    "close",
    "dup",
    "dup2",
    "dup3",
    "setfl",
    "getfl",
    "write",
    "pwrite",
    "read",
    "pread",
    "lseek",
    "ftruncate",
    "fallocate",
    "map",
    "poke",
    "peek",
    "msync",
    "unmap",
    "fstat",
    "fchmod",
    "futimens",
    "fsync",
    "fdatasync",
    "sendfile",
    "copyrange",
    "fchdir",
];

/// See the module.
pub struct Worker {
    pub root: String,
    pub root_device: u64,
    pub is_native: bool,
    pub openings: Openings,
    pub slots: [c_int; SLOTS],
    pub mappings: [Option<Mapping>; FEW],
    pub streams: [*mut libc::DIR; FEW],
    pub memory: Memory,
}

/// A number in a plan.
fn parse<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("'{word}' is not a number that fits"))
}

/// Permissions in a plan.
fn octal(word: &str) -> libc::mode_t {
    libc::mode_t::from_str_radix(word, 8).unwrap_or_else(|_| panic!("'{word}' is not octal"))
}

impl Worker {
    pub fn new(openings: Openings, is_native: bool) -> Worker {
        let root = std::env::current_dir().expect("the root exists");
        let root = root.to_str().expect("the tests' directories have plain names").to_string();
        let start = Place { directory: libc::AT_FDCWD, path: c_string("@", &root) };
        let root_device = start.stat(true).unwrap_or_else(|_| panic!("no root")).st_dev;
        let (slots, mappings, streams) = ([-1; SLOTS], [const { None }; FEW], [std::ptr::null_mut(); FEW]);
        Worker { root, root_device, is_native, openings, slots, mappings, streams, memory: Memory::new() }
    }

    /// The file name of a plan: `SLOT:PATH` is relative to an open directory.
    pub fn place(&self, text: &str) -> Place {
        let (directory, path) = match text.split_once(':') {
            Some((slot, path)) => (self.fd(slot), path),
            None => (libc::AT_FDCWD, text),
        };
        let leads_out = path.starts_with("..") && !self.is_inside(directory);
        let path = if leads_out { "@/ckpt/not/there" } else { path };
        Place { directory, path: c_string(path, &self.root) }
    }

    /// Whether a directory lies below the root: a plan must not climb out, step by step.
    fn is_inside(&self, directory: c_int) -> bool {
        let path = match directory {
            libc::AT_FDCWD => std::env::current_dir(),
            descriptor => std::fs::read_link(format!("/proc/self/fd/{descriptor}")),
        };
        path.is_ok_and(|path| path.starts_with(&self.root) && path.as_os_str().len() > self.root.len())
    }

    /// The descriptor in a slot; -1, which no call accepts, when it is closed.
    pub fn fd(&self, slot: &str) -> c_int {
        self.slots[parse::<usize>(slot)]
    }

    /// The number that dup2 is given for a slot.
    pub fn number_for(&self, slot: usize) -> c_int {
        if self.slots[slot] >= 0 { self.slots[slot] } else { NUMBER_OF_FIRST_SLOT + slot as c_int }
    }

    /// Performs the operation that a line names.
    pub fn perform(&mut self, words: &[&str]) -> Answer {
        match *words {
            ["open", slot, path, flags, mode] => self.open(parse(slot), path, flags, octal(mode)),
            [name, ..] if ON_DESCRIPTORS.contains(&name) => self.on_descriptor(words),
            _ => self.on_names(words),
        }
    }

    /// What an operation does that is not performed: it closes the slot that it was to fill.
    pub fn skip(&mut self, words: &[&str]) {
        if let ["open" | "save", slot, ..] = *words {
            let _ = self.close(parse(slot));
        }
    }

    fn on_descriptor(&mut self, words: &[&str]) -> Answer {
        match *words {
            ["close", slot] => self.close(parse(slot)),
            ["dup", slot, other] => self.dup(parse(slot), parse(other)),
            [name @ ("dup2" | "dup3"), slot, other] => self.dup_onto(parse(slot), parse(other), name == "dup3"),
            ["setfl", slot, flags] => self.set_flags(self.fd(slot), flags),
            ["getfl", slot] => self.get_flags(self.fd(slot)),
            ["write", slot, size, letter] => self.write(self.fd(slot), parse(size), letter, None),
            ["pwrite", slot, size, offset, letter] => {
                self.write(self.fd(slot), parse(size), letter, Some(parse(offset)))
            }
            ["read", slot, size] => self.read(self.fd(slot), parse(size), None),
            ["pread", slot, size, offset] => self.read(self.fd(slot), parse(size), Some(parse(offset))),
            ["lseek", slot, offset, whence] => self.seek(self.fd(slot), parse(offset), whence),
            ["ftruncate", slot, size] => self.truncate_file(self.fd(slot), parse(size)),
            ["fallocate", slot, mode, offset, size] => self.allocate(self.fd(slot), mode, parse(offset), parse(size)),
            ["map", few, slot, kind, size] => self.map(parse(few), self.fd(slot), kind, parse(size)),
            ["poke", few, offset, size, letter] => self.poke(parse(few), parse(offset), parse(size), letter),
            ["peek", few] => self.peek(parse(few)),
            ["msync", few] => self.sync_mapping(parse(few)),
            ["unmap", few] => self.unmap(parse(few)),
            ["fstat", slot] => self.file_status(self.fd(slot)),
            ["fchmod", slot, mode] => self.file_mode(self.fd(slot), octal(mode)),
            ["futimens", slot, seconds] => self.file_times(self.fd(slot), parse(seconds)),
            [name @ ("fsync" | "fdatasync"), slot] => self.sync(self.fd(slot), name == "fdatasync"),
            ["sendfile", to, from, size] => self.send(self.fd(to), self.fd(from), parse(size)),
            ["copyrange", to, from, size] => self.copy_range(self.fd(to), self.fd(from), parse(size)),
            // SAFETY: takes an integer.
            ["fchdir", slot] => done(unsafe { libc::fchdir(self.fd(slot)) }),
            _ => panic!("'{}' is no operation", words.join(" ")),
        }
    }

    fn on_names(&mut self, words: &[&str]) -> Answer {
        match *words {
            [name @ ("stat" | "lstat" | "statx"), path] => self.status_of(&self.place(path), name),
            ["access", path, mode] => self.place(path).access(parse(mode)),
            ["chmod", path, mode] => self.place(path).chmod(octal(mode)),
            ["utimens", path, seconds, how] => self.place(path).set_times(parse(seconds), how == "follow"),
            ["truncate", path, size] => {
                let place = self.place(path);
                self.guard_size(place.stat(true), parse(size))?;
                place.truncate(parse(size))
            }
            ["readlink", path] => self.read_link(&self.place(path)),
            ["realpath", path] => self.real_path(&self.place(path)),
            ["cat", path] => self.cat(&self.place(path)),
            ["fopen", path, mode, size, letter] => self.stream(&self.place(path), mode, parse(size), letter),
            ["save", slot, directory, name, size, letter] => {
                self.save(parse(slot), directory, name, parse(size), letter)
            }
            ["rename", from, to] => self.rename(&self.place(from), &self.place(to), None),
            ["renameat2", from, to, flags] => self.rename(&self.place(from), &self.place(to), Some(flags)),
            ["link", from, to, how] => self.link(&self.place(from), &self.place(to), how == "follow"),
            ["symlink", target, path] => self.place(path).symlink(&c_string(target, &self.root)),
            ["unlink", path] => self.place(path).unlink(0),
            ["remove", path] => self.place(path).remove(),
            ["rmdir", path] => self.place(path).unlink(libc::AT_REMOVEDIR),
            ["mkdir", path, mode] => self.place(path).mkdir(octal(mode)),
            ["chdir", path] => self.change_directory(&self.place(path)),
            ["getcwd"] => self.working_directory(),
            ["list", path, how] => self.list(&self.place(path), how),
            ["fdlist", slot] => self.list_descriptor(self.fd(slot)),
            ["opendir", few, path] => self.open_stream(parse(few), &self.place(path)),
            ["relist", few] => self.list_again(parse(few)),
            ["closedir", few] => self.close_stream(parse(few)),
            ["tree"] => self.tree(),
            _ => panic!("'{}' is no operation", words.join(" ")),
        }
    }
}
