//! What a program's file says about whether the library can be preloaded into it: an ELF header reader of just that
//! size. Never executes anything.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many interpreters may stand behind each other, as in the kernel.
const INTERPRETERS_MAX: usize = 4;
/// Bytes of a file that name its interpreter or hold its ELF header.
const START: usize = 256;
/// Most bytes of program headers that are read.
const PROGRAM_HEADERS_MAX: usize = 64 * 1024;
/// The program header type that names the dynamic loader.
const PT_INTERP: u32 = 3;
/// The program header type of notes.
const PT_NOTE: u32 = 4;
/// The note that Go's linker leaves: type 4 and owner.
const GO_NOTE: &[u8] = b"\x04\0\0\0Go\0\0";
/// ELF machine number of the processor that this program, and so the library, is built for.
const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };

/// A program that was looked at.
#[derive(Debug)]
pub struct Inspection {
    /// The file that is executed in the end: the interpreter, when the program is a script.
    pub path: PathBuf,
    /// Why the library cannot be preloaded; `None` when it can.
    pub obstacle: Option<Obstacle>,
}

/// Why the library cannot be preloaded into a program, or does not see its calls.
#[derive(Debug)]
pub struct Obstacle {
    /// As a predicate: "is statically linked".
    text: &'static str,
    /// Whether `sheaf run --trap` reaches it.
    pub can_be_trapped: bool,
    /// Whether it gains privileges, which a trapped program does not.
    pub has_privileges: bool,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text)
    }
}

/// An obstacle that the trap has, too.
const fn obstacle(text: &'static str) -> Obstacle {
    Obstacle { text, can_be_trapped: false, has_privileges: false }
}

/// The file that `execvp` would execute.
pub fn find(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let directories = env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    env::split_paths(&directories).map(|directory| directory.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

/// Looks at a program, through its interpreters if it is a script.
///
/// # Errors
/// When a file cannot be read.
pub fn inspect(program: &Path) -> io::Result<Inspection> {
    let mut path = program.to_path_buf();
    for _ in 0..INTERPRETERS_MAX {
        let file = File::open(&path)?;
        let mut start = Vec::new();
        (&file).take(START as u64).read_to_end(&mut start)?;
        match interpreter(&start) {
            Some(next) => path = next,
            None => {
                let obstacle = match privileges(&path, &file)? {
                    Some(text) => Some(Obstacle { has_privileges: true, ..obstacle(text) }),
                    None => elf_obstacle(&file, &start)?,
                };
                return Ok(Inspection { path, obstacle });
            }
        }
    }
    Ok(Inspection { path, obstacle: Some(obstacle("has too many interpreters behind each other")) })
}

/// What a script's first line names.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty());
    let first = PathBuf::from(OsString::from_vec(words.next()?.to_vec()));
    let second = words.next().map(OsStr::from_bytes);
    // `#!/usr/bin/env NAME` is the usual way to say NAME.
    match second.filter(|_| first.file_name() == Some(OsStr::new("env"))) {
        Some(name) => find(name),
        None => Some(first),
    }
}

/// The loader ignores LD_PRELOAD for programs that gain privileges.
fn privileges(path: &Path, file: &File) -> io::Result<Option<&'static str>> {
    let metadata = file.metadata()?;
    let foreign_user = metadata.mode() & 0o4000 != 0 && metadata.uid() != rustix::process::geteuid().as_raw();
    let foreign_group = metadata.mode() & 0o2000 != 0 && metadata.gid() != rustix::process::getegid().as_raw();
    if foreign_user || foreign_group {
        return Ok(Some("is set-user-ID or set-group-ID, and the loader preloads nothing into it"));
    }
    let mut capabilities = [0u8; 64];
    match rustix::fs::getxattr(path, c"security.capability", &mut capabilities[..]) {
        Ok(length) if length > 0 && !rustix::process::geteuid().is_root() => {
            Ok(Some("has file capabilities, and the loader preloads nothing into it"))
        }
        _ => Ok(None),
    }
}

fn elf_obstacle(file: &File, start: &[u8]) -> io::Result<Option<Obstacle>> {
    let Some(header) = Header::read(start) else {
        return Ok(Some(obstacle("is neither an ELF program nor a script with a first line #!")));
    };
    if !header.is_64_bit {
        return Ok(Some(obstacle("is a 32-bit program, and the library is 64-bit")));
    }
    if header.machine != MACHINE {
        return Ok(Some(obstacle("is built for another processor")));
    }
    let text = match segment(file, &header, PT_INTERP)? {
        None => "is statically linked",
        Some(loader) if contains(&loader, b"musl") => "uses the musl C library, and the library needs glibc",
        Some(_) => match segment(file, &header, PT_NOTE)? {
            Some(notes) if contains(&notes, GO_NOTE) => "is a Go program, which calls the kernel past its C library",
            _ => return Ok(None),
        },
    };
    Ok(Some(Obstacle { can_be_trapped: true, ..obstacle(text) }))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The fields of an ELF header that matter here. 64-bit offsets only: nothing more is asked of a 32-bit program.
struct Header {
    is_64_bit: bool,
    machine: u16,
    program_headers_at: u64,
    program_header_size: usize,
    program_header_count: usize,
}

impl Header {
    fn read(start: &[u8]) -> Option<Header> {
        if start.get(..4)? != b"\x7fELF" {
            return None;
        }
        Some(Header {
            is_64_bit: *start.get(4)? == 2,
            machine: number(start, 18, 2)? as u16,
            program_headers_at: number(start, 32, 8)?,
            program_header_size: number(start, 54, 2)? as usize,
            program_header_count: number(start, 56, 2)? as usize,
        })
    }
}

/// The start of what the first program header of a type describes; `None` when there is none.
fn segment(file: &File, header: &Header, kind: u32) -> io::Result<Option<Vec<u8>>> {
    let size = header.program_header_size * header.program_header_count;
    let mut table = vec![0; size.min(PROGRAM_HEADERS_MAX)];
    file.read_exact_at(&mut table, header.program_headers_at)?;
    for entry in table.chunks(header.program_header_size.max(1)) {
        if number(entry, 0, 4) != Some(kind.into()) {
            continue;
        }
        let (Some(at), Some(length)) = (number(entry, 8, 8), number(entry, 32, 8)) else { break };
        let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(START)];
        file.read_exact_at(&mut content, at)?;
        return Ok(Some(content));
    }
    Ok(None)
}

/// A number in the byte order of this machine; a program of the other order fails the check of its processor.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn obstacle(content: &[u8]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, content).unwrap();
        inspect(&path).unwrap().obstacle.map(|obstacle| obstacle.to_string())
    }

    /// The header of a program with one program header of this type and this loader name.
    fn elf(class: u8, machine: u16, header_type: u32, loader: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&header_type.to_le_bytes());
        bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(loader.len() as u64).to_le_bytes());
        bytes.extend_from_slice(loader);
        bytes
    }

    #[test]
    fn dynamic_programs_and_their_scripts_can_be_captured() {
        assert_eq!(obstacle(&elf(2, MACHINE, PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")), None);
        let own = env::current_exe().unwrap();
        assert!(inspect(&own).unwrap().obstacle.is_none());
        let script = format!("#! {} -x\nrest", own.display());
        assert_eq!(obstacle(script.as_bytes()), None);
        let shell = inspect(&find(OsStr::new("sh")).unwrap()).unwrap();
        assert_eq!(obstacle(b"#!/usr/bin/env sh\n"), shell.obstacle.map(|obstacle| obstacle.to_string()));
    }

    #[test]
    fn what_cannot_be_captured_is_named() {
        for (content, word) in [
            (elf(2, MACHINE, 1, b""), "statically"),
            (elf(1, 3, PT_INTERP, b""), "32-bit"),
            (elf(2, 0xffff, PT_INTERP, b""), "processor"),
            (elf(2, MACHINE, PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0"), "musl"),
            (b"just text".to_vec(), "neither"),
        ] {
            let text = obstacle(&content).unwrap();
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn damaged_headers_are_errors_and_no_crash() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let whole = elf(2, MACHINE, PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0");
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(inspect(&path).map_or(true, |found| found.obstacle.is_some()), "{length}");
        }
    }

    #[test]
    fn programs_are_searched_for_as_the_kernel_would() {
        assert_eq!(find(OsStr::new("/a/b")), Some(PathBuf::from("/a/b")));
        assert_eq!(find(OsStr::new("no-such-program-of-sheaf")), None);
        let found = find(OsStr::new("sh")).unwrap();
        assert!(fs::metadata(found).unwrap().permissions().mode() & 0o111 != 0);
    }
}
