//! `sheaf cat`: one file's bytes, on standard output.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Failure, offline};
use crate::settings::Damaged;
use crate::store::Node;

/// How many symbolic links are followed, as in the kernel.
const LINKS_MAX: usize = 40;

/// Write a file's bytes to standard output, checked
#[derive(Args, Debug)]
pub struct CatArgs {
    /// The store's directory, or aggregates of it
    #[arg(required = true, value_name = "STORE|AGGREGATE")]
    sources: Vec<PathBuf>,
    /// The file's path, as the program had it
    #[arg(required = true)]
    path: OsString,
}

/// Writes the file; see [`CatArgs`].
///
/// # Errors
/// When there is no such file, or its data cannot be had intact.
pub fn run(arguments: CatArgs) -> Result<ExitCode, Failure> {
    let store = offline::open(&arguments.sources)?;
    let typed = arguments.path.as_bytes();
    let mut path = offline::stored_path(typed).to_vec();
    let mut node = store.view().get(&path);
    for _ in 0..LINKS_MAX {
        let Some(Node::Symlink(link)) = node else { break };
        path = follow(&path, &link.target);
        node = store.view().get(&path);
    }
    let typed = typed.escape_ascii();
    let version = match node {
        Some(Node::File(version)) => version,
        Some(Node::Directory(_)) => return Err(Failure::new(format_args!("{typed} is a directory"))),
        Some(Node::Symlink(_)) => return Err(Failure::new(format_args!("{typed}: too many symbolic links"))),
        None => return Err(Failure::new(format_args!("{typed} is not in the store; `sheaf ls` lists what is"))),
    };
    let mut out = io::stdout().lock();
    let mut position = 0;
    let reader = store.reader(version)?.choose(Damaged::from_environment()?);
    if reader.version().operation_time_ns != version.operation_time_ns {
        eprintln!("sheaf: {typed}: the newest version is damaged; this is an older one (SHEAF_DAMAGED)");
    }
    reader.copy(&mut |offset, bytes| {
        write_zeros(&mut out, offset - position)?;
        out.write_all(bytes)?;
        position = offset + bytes.len() as u64;
        Ok(())
    })?;
    write_zeros(&mut out, reader.version().size - position)?;
    out.flush()?;
    Ok(offline::exit_code(!store.notes().is_empty()))
}

fn write_zeros(out: &mut impl Write, length: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), length), out).map(|_| ())
}

/// Where a link in the store leads to, by its text alone.
fn follow(path: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
    let start = if target.starts_with(b"/") { b"" } else { directory };
    let mut components: Vec<&[u8]> = start.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    components.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_by_their_text() {
        for (path, target, result) in
            [("a/l", "b", "a/b"), ("a/l", "../c/./d", "c/d"), ("a/l", "/x/y", "x/y"), ("l", "../..//b", "b")]
        {
            assert_eq!(follow(path.as_bytes(), target.as_bytes()), result.as_bytes());
        }
    }
}
