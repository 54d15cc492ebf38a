//! What a program asks of its libraries, as far as that matters to capturing: for `sheaf doctor -- PROGRAM`.
//!
//! It reads the program's own dynamic symbols. What its libraries import is theirs, and is captured as well.

use std::fs;
use std::io;
use std::path::Path;

use object::{Object, ObjectSymbol};

/// Functions behind which captured files would differ, or which the library does not see, with what to do about them.
const REMARKABLE: [(&str, &str); 6] = [
    (
        "MPI_File_open",
        "MPI-IO: a file that several nodes write together must be left out with SHEAF_EXCLUDE; files of one process are fine",
    ),
    ("H5Pset_fapl_mpio", "parallel HDF5: a file that several nodes write together must be left out with SHEAF_EXCLUDE"),
    ("io_uring_queue_init", "io_uring: files that it opens by the ring itself are not captured; reads and writes are"),
    ("dlmopen", "plugins in a namespace of their own (dlmopen) open files past the library"),
    ("open_by_handle_at", "files that are opened by handle are not captured"),
    ("dlopen", "plugins that it loads with RTLD_DEEPBIND open files past the library"),
];
/// By what a program opens and makes files.
const OPENERS: [&str; 14] = [
    "open",
    "open64",
    "openat",
    "openat64",
    "__open_2",
    "__open64_2",
    "creat",
    "creat64",
    "fopen",
    "fopen64",
    "freopen",
    "freopen64",
    "mkstemp",
    "mkstemp64",
];

/// What was found in a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imports {
    /// Functions by which it opens files itself.
    pub openers: Vec<String>,
    /// What a user should know, for each function that the library does not see, or that needs care.
    pub remarks: Vec<&'static str>,
}

/// Reads a program.
///
/// # Errors
/// When it cannot be read, or is no ELF file.
pub fn of(program: &Path) -> io::Result<Imports> {
    let bytes = fs::read(program)?;
    let file = object::File::parse(&*bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let imported: Vec<&str> =
        file.dynamic_symbols().filter(|symbol| symbol.is_undefined()).filter_map(|symbol| symbol.name().ok()).collect();
    let has = |name: &str| imported.contains(&name);
    Ok(Imports {
        openers: OPENERS.iter().filter(|name| has(name)).map(|name| name.to_string()).collect(),
        remarks: REMARKABLE.iter().filter(|(name, _)| has(name)).map(|(_, remark)| *remark).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_real_program_is_read() {
        let shell = super::super::program_file::find(OsStr::new("sh")).unwrap();
        let imports = of(&shell).unwrap();
        assert!(!imports.openers.is_empty(), "{imports:?}");
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        fs::write(&path, b"just text").unwrap();
        assert_eq!(of(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
