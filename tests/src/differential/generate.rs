//! Random plans: the same seed makes the same plan on every machine.
//!
//! Names are few, so that operations meet; spellings are many. A plan knows nothing of what its operations answer.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{BETWEEN, PHASE, PROCESSES, Plan};

/// Open files of one process.
const SLOTS: usize = 6;
/// Memory mappings and directory streams of one process.
const FEW: usize = 2;
const DIRECTORIES: [&str; 8] = ["ckpt", "ckpt", "ckpt", "ckpt/d", "ckpt/d", "ckpt/d/e", "ckpt/f", "out"];
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g.raw"];
const TARGETS: [&str; 7] = ["a", "b", "d", "../a", ".", "d/../b", "e/c"];

struct Generator {
    random: StdRng,
    /// Whether each process has left the root: then its bare names are more useful.
    is_away: [bool; PROCESSES],
}

/// A plan of `phases` phases with `operations` lines each.
pub fn plan(seed: u64, phases: usize, operations: usize) -> Plan {
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), is_away: [false; PROCESSES] };
    let mut lines = Vec::new();
    for number in 0..phases {
        if number > 0 {
            let after = if number + 1 == phases { "wipe" } else { generator.choose(&BETWEEN) };
            lines.push("p0 tree".to_string());
            lines.push(format!("{PHASE} {after}"));
        }
        generator.is_away = [false; PROCESSES];
        if number + 1 < phases {
            generator.phase(operations, &mut lines);
        }
    }
    lines.push("p0 tree".to_string());
    Plan { lines }
}

impl Generator {
    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.choose(&mut self.random).expect("not empty")
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    fn phase(&mut self, operations: usize, lines: &mut Vec<String>) {
        let end = lines.len() + operations;
        while lines.len() < end {
            let process = self.below(PROCESSES);
            for _ in 0..1 + self.below(6) {
                let operation = self.operation(process);
                lines.push(format!("p{process} {operation}"));
            }
        }
    }

    fn operation(&mut self, process: usize) -> String {
        match self.below(1000) {
            0 => self.choose(&["wait", "wait", "kill"]).to_string(),
            1 => "tree".to_string(),
            2..=9 => format!("fork {}", 1 + self.below(8)),
            10..=29 => self.place(process),
            30..=499 => self.on_descriptor(process),
            500..=699 => self.on_file(process),
            700..=849 => self.on_names(process),
            _ => self.on_directories(process),
        }
    }

    /// A path below the root, mostly plain, now and then spelt in a roundabout way.
    fn path(&mut self, process: usize) -> String {
        let name = self.choose(&NAMES);
        let directory = self.choose(&DIRECTORIES);
        let relative = if self.is_away[process] { 40 } else { 5 };
        match self.below(100) {
            0..=1 => format!("@//{directory}/.//{name}"),
            2..=3 => format!("@/{directory}/../ckpt/{name}"),
            4..=5 => format!("@/link/{name}"),
            6..=7 => format!("@/out/in/{name}"),
            8..=9 => format!("@/{directory}/{name}/{name}"),
            10 => format!("@/{directory}/d/../{name}"),
            11 => format!("@/link/../ckpt/d/{name}"),
            12..=17 => format!("{}:{name}", self.below(SLOTS)),
            18..=19 => format!("{}:../{name}", self.below(SLOTS)),
            number if number < 20 + relative => match self.below(3) {
                0 => format!("../{name}"),
                1 => format!("./{name}"),
                _ => name.to_string(),
            },
            number if number < 75 => format!("@/{directory}/{name}"),
            _ => format!("{directory}/{name}"),
        }
    }

    fn directory(&mut self, process: usize) -> String {
        match self.below(10) {
            0 => self.path(process),
            1 => self.choose(&["@/link", "@/out/in", "@/ckpt/", "@/out/../ckpt", "."]).to_string(),
            2 => format!("{}:.", self.below(SLOTS)),
            _ => format!("@/{}", self.choose(&DIRECTORIES)),
        }
    }

    /// Where a process is.
    fn place(&mut self, process: usize) -> String {
        match self.below(4) {
            0 => {
                self.is_away[process] = true;
                format!("chdir {}", self.directory(process))
            }
            1 => {
                self.is_away[process] = true;
                format!("fchdir {}", self.below(SLOTS))
            }
            2 => "getcwd".to_string(),
            _ => {
                self.is_away[process] = false;
                "chdir @/".to_string()
            }
        }
    }

    fn flags(&mut self) -> String {
        let mut flags = self.choose(&["RDONLY", "RDONLY", "WRONLY", "RDWR", "RDWR"]).to_string();
        for (flag, percent) in [
            ("CREAT", 45),
            ("TRUNC", 20),
            ("EXCL", 6),
            ("APPEND", 10),
            ("NOFOLLOW", 5),
            ("DIRECTORY", 6),
            ("CLOEXEC", 20),
            ("NONBLOCK", 5),
            ("SYNC", 2),
            ("NOATIME", 3),
            ("PATH", 4),
        ] {
            if self.below(100) < percent {
                flags.push('|');
                flags.push_str(flag);
            }
        }
        flags
    }

    fn mode(&mut self) -> String {
        format!("{:o}", 0o700 | self.below(0o100))
    }

    /// Sizes and offsets: mostly small, seldom far beyond what fits a page, a chunk or a buffer.
    fn size(&mut self) -> usize {
        match self.below(200) {
            0 => self.below(5 << 20),
            1..=5 => self.below(300_000),
            6..=30 => 4096 * self.below(6),
            _ => self.below(10_000),
        }
    }

    fn letter(&mut self) -> char {
        char::from(b'a' + self.below(26) as u8)
    }

    fn seconds(&mut self) -> usize {
        1_000_000_000 + self.below(1000)
    }

    fn on_descriptor(&mut self, process: usize) -> String {
        let (slot, other, few) = (self.below(SLOTS), self.below(SLOTS), self.below(FEW));
        let (size, offset, letter) = (self.size(), self.size(), self.letter());
        match self.below(100) {
            0..=19 => {
                let (path, flags, mode) = (self.path(process), self.flags(), self.mode());
                format!("open {slot} {path} {flags} {mode}")
            }
            20..=21 => format!("open {slot} {} RDONLY|DIRECTORY 0", self.directory(process)),
            22..=33 => format!("write {slot} {size} {letter}"),
            34..=37 => format!("pwrite {slot} {size} {offset} {letter}"),
            38..=45 => format!("read {slot} {size}"),
            46..=50 => format!("pread {slot} {size} {offset}"),
            51..=54 => format!("lseek {slot} {offset} {}", self.choose(&["set", "cur", "end"])),
            55..=58 => format!("ftruncate {slot} {size}"),
            59 => format!("fallocate {slot} {} {offset} {size}", self.choose(&["plain", "keep", "punch", "posix"])),
            60..=61 => format!("dup {slot} {other}"),
            62..=63 => format!("{} {slot} {other}", self.choose(&["dup2", "dup3"])),
            64..=65 => format!("setfl {slot} {}", self.choose(&["APPEND", "NONBLOCK", "RDONLY", "APPEND|NONBLOCK"])),
            66 => format!("getfl {slot}"),
            67..=70 => format!("map {few} {slot} {} {size}", self.choose(&["shared", "shared", "readonly", "private"])),
            71..=74 => format!("poke {few} {} {} {letter}", offset % 20_000, size % 9000),
            75..=77 => format!("peek {few}"),
            78 => format!("msync {few}"),
            79..=80 => format!("unmap {few}"),
            81..=85 => format!("fstat {slot}"),
            86 => format!("fchmod {slot} {}", self.mode()),
            87 => format!("futimens {slot} {}", self.seconds()),
            88 => format!("{} {slot}", self.choose(&["fsync", "fdatasync"])),
            89..=91 => format!("sendfile {slot} {other} {size}"),
            92..=93 => format!("copyrange {slot} {other} {size}"),
            94 => format!("fdlist {slot}"),
            _ => format!("close {slot}"),
        }
    }

    fn on_file(&mut self, process: usize) -> String {
        let path = self.path(process);
        let (size, letter) = (self.size(), self.letter());
        match self.below(100) {
            0..=14 => format!("{} {path}", self.choose(&["stat", "lstat", "statx"])),
            15..=19 => format!("access {path} {}", self.below(8)),
            20..=29 => format!("chmod {path} {}", self.mode()),
            30..=36 => format!("utimens {path} {} {}", self.seconds(), self.choose(&["follow", "nofollow"])),
            37..=46 => format!("truncate {path} {size}"),
            47..=50 => format!("readlink {path}"),
            51..=55 => format!("realpath {path}"),
            56..=70 => format!("cat {path}"),
            71..=80 => format!("fopen {path} {} {size} {letter}", self.choose(&["w", "a", "r+", "w+", "a+", "wx"])),
            _ => {
                let slot = self.below(SLOTS);
                format!("save {slot} {} {} {size} {letter}", self.directory(process), self.choose(&NAMES))
            }
        }
    }

    fn on_names(&mut self, process: usize) -> String {
        let (one, other) = (self.path(process), self.path(process));
        match self.below(100) {
            0..=29 => format!("rename {one} {other}"),
            30..=39 => {
                let flags = self.choose(&["noreplace", "noreplace", "exchange", "exchange", "exchange|noreplace"]);
                format!("renameat2 {one} {other} {flags}")
            }
            40..=54 => format!("link {one} {other} {}", self.choose(&["nofollow", "nofollow", "follow"])),
            55..=64 => format!("symlink {} {one}", self.choose(&TARGETS)),
            65..=69 => format!("remove {one}"),
            _ => format!("unlink {one}"),
        }
    }

    fn on_directories(&mut self, process: usize) -> String {
        let directory = self.directory(process);
        let few = self.below(FEW);
        match self.below(100) {
            0..=24 => {
                let mode = self.mode();
                format!("mkdir {} {mode}", if self.below(3) == 0 { self.path(process) } else { directory })
            }
            25..=34 => format!(
                "rmdir {}",
                if self.below(2) == 0 { self.path(process) } else { format!("@/{}", self.choose(&DIRECTORIES[3..7])) }
            ),
            35..=39 => {
                let source = self.choose(&["@/ckpt/d", "@/ckpt/f", "@/ckpt/d/e", "@/ckpt/e"]);
                let target = self.choose(&["@/ckpt/d", "@/ckpt/f", "@/ckpt/e", "@/ckpt/f/d"]);
                format!("rename {source} {target}")
            }
            40..=54 => format!("stat {directory}"),
            55..=84 => format!("list {directory} {}", self.choose(&["plain", "plain", "rewind", "seek", "scandir"])),
            85..=89 => format!("opendir {few} {directory}"),
            90..=96 => format!("relist {few}"),
            _ => format!("closedir {few}"),
        }
    }
}
