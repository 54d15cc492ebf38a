//! `sheaf-bench scale`: stores of many simulated nodes, made by the flusher's own code, and what reading them takes.
//!
//! Counted are the calls on the store that a metadata server sees, and bytes, by strace: neither the machine nor its
//! load has a part in them. Times and memory are of single runs, for people.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use sheaf_flusher::aggregate::{
    Attributes, BLOCK, Entry, Extents, FLAG_ENDED, FileChecksummer, Identity, Kind, SegmentPlan, TarNames, format_entry,
};
use sheaf_flusher::store::Store;

use crate::Failure;

/// Files of each node, in two steps.
const FILES_OF_NODE: u64 = 100;
/// Each of them, all of it a hole: names are what is measured.
const FILE_BYTES: u64 = 1 << 20;
/// When the first operation happened.
const START_NS: u64 = 1_700_000_000_000_000_000;

/// Calls that are counted: what a metadata server sees of who reads, and reading.
const READING: &str = "%file,getdents64,read,pread64,fsync";
/// And of who writes.
const WRITING: &str = "%file,getdents64,read,pread64,fsync,fdatasync,fallocate,ftruncate,fcntl";
/// More do not write at once here: each has a file open.
const WRITERS_MAX: u64 = 1000;

/// Measures stores of simulated nodes and prints a table.
#[derive(Debug, clap::Args)]
pub struct Scale {
    /// Numbers of nodes; each node has one sealed aggregate with 100 files.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000")]
    nodes: Vec<u64>,
    /// An empty directory for the stores.
    #[arg(long)]
    directory: PathBuf,
}

/// What a program did on the store, and what it took.
struct Cost {
    operations: usize,
    read_bytes: u64,
    seconds: f64,
    memory_mib: f64,
}

/// See [`Scale`].
///
/// # Errors
/// When a store cannot be made or read.
pub fn run(options: &Scale) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header([
        "nodes",
        "files",
        "what",
        "calls on the store",
        "read, MiB",
        "seconds",
        "memory, MiB",
    ]);
    for &nodes in &options.nodes {
        let store = options.directory.join(format!("{nodes}"));
        fs::create_dir_all(&store)?;
        (0..nodes).try_for_each(|node| make_aggregate(&store, node))?;
        let path = store.to_string_lossy().into_owned();
        let mut row = |what: &str, cost: &Cost| {
            table.add_row([
                nodes.to_string(),
                (nodes * FILES_OF_NODE).to_string(),
                what.to_owned(),
                cost.operations.to_string(),
                format!("{:.1}", cost.read_bytes as f64 / 1048576.0),
                format!("{:.2}", cost.seconds),
                format!("{:.0}", cost.memory_mib),
            ]);
        };
        row("a node reads the store, no catalog", &cost(&store, &["cat", &path, "/run/step0/0/0-0.dat"])?);
        row("`sheaf catalog`, once per store", &cost(&store, &["catalog", &path])?);
        row("a node reads the store", &cost(&store, &["cat", &path, "/run/step0/0/0-0.dat"])?);
        row("`sheaf ls`", &cost(&store, &["ls", &path])?);
        let more = nodes.div_ceil(100);
        (nodes..nodes + more).try_for_each(|node| make_aggregate(&store, node))?;
        row(
            &format!("a node reads the store, {more} aggregates later"),
            &cost(&store, &["cat", &path, "/run/step0/0/0-0.dat"])?,
        );
        row("`sheaf catalog`, made anew", &cost(&store, &["catalog", &path])?);
        row("`sheaf cuts`", &cost(&store, &["cuts", &path])?);
        row("`sheaf prune --dry-run`", &cost(&store, &["prune", "--dry-run", "--all-nodes", &path])?);
        fs::remove_dir_all(&store)?;
    }
    println!("{table}\n\n{}", writing(options)?);
    Ok(())
}

/// What nodes do on a store to write to it: for each, when there are so many.
fn writing(options: &Scale) -> Result<Table, Failure> {
    let mut table = Table::new();
    let columns = ["nodes", "layout", "files in the store", "calls of each node", "read by each, KiB", "seconds"];
    table.load_preset(ASCII_MARKDOWN).set_header(columns);
    for &nodes in options.nodes.iter().filter(|nodes| **nodes <= WRITERS_MAX) {
        for shared in [0, 1, 16] {
            let store = options.directory.join(format!("writing-{nodes}-{shared}"));
            let place = store.to_string_lossy().into_owned();
            let (count_nodes, count_files) = (nodes.to_string(), shared.to_string());
            let arguments = ["reserve", "--nodes", &count_nodes, "--shared", &count_files, "--store", &place];
            let (operations, read_bytes) = count(&store, &std::env::current_exe()?, WRITING, &arguments)?;
            let files = fs::read_dir(&store)?.count();
            fs::remove_dir_all(&store)?;
            let since = Instant::now();
            Command::new(std::env::current_exe()?).args(arguments).status()?;
            table.add_row([
                nodes.to_string(),
                if shared == 0 { "node".to_owned() } else { format!("shared:{shared}") },
                files.to_string(),
                format!("{:.1}", operations as f64 / nodes as f64),
                format!("{:.1}", read_bytes as f64 / nodes as f64 / 1024.0),
                format!("{:.2}", since.elapsed().as_secs_f64()),
            ]);
            fs::remove_dir_all(&store)?;
        }
    }
    Ok(table)
}

fn make_aggregate(store: &Path, node: u64) -> Result<(), Failure> {
    let mut uuid = [0x5a; 16];
    uuid[..8].copy_from_slice(&node.to_be_bytes());
    let identity = Identity {
        uuid,
        node: format!("node{node:05}"),
        job: "1".to_owned(),
        incarnation: 1,
        created_ns: START_NS,
        stage: uuid,
        watermark_ns: 0,
        acknowledged_ns: 0,
    };
    let path = store.join(format!("node{node:05}-1.tar"));
    let file = File::create_new(&path)?;
    file.write_all_at(&format_entry(&identity), 0)?;
    let (mut names, mut end) = (TarNames::default(), BLOCK);
    for step in 0..2 {
        let entries = (0..FILES_OF_NODE / 2).map(|number| entry(node, step, number)).collect();
        let plan = SegmentPlan::new(&identity, step + 1, entries, &mut names).map_err(|error| format!("{error:?}"))?;
        end += write_segment(&file, &plan, end)?;
    }
    file.set_len(end + BLOCK)?;
    let of_it = Store::open_all(std::slice::from_ref(&path))?;
    let (id, _) = of_it.aggregates().next().ok_or("the aggregate cannot be read")?;
    let last_word = Entry::watermark(START_NS + 3_000_000_000, FLAG_ENDED);
    let sealed = of_it.seal_segment(id, &identity, (3, end), last_word)?;
    file.write_all_at(&sealed.bytes, end)?;
    file.write_all_at(&sealed.head, end)?;
    Ok(file.set_len(end + sealed.bytes.len() as u64 + BLOCK)?)
}

fn entry(node: u64, step: u64, number: u64) -> Entry {
    let operation_time_ns = START_NS + step * 1_000_000_000 + number * 1000;
    Entry {
        kind: Kind::File,
        path: format!("run/step{step}/{}/{node}-{number}.dat", node / 100).into_bytes(),
        target: Vec::new(),
        attributes: Attributes { mode: 0o644, uid: 0, gid: 0, mtime_seconds: 1_700_000_000, mtime_nanoseconds: 0 },
        size: FILE_BYTES,
        extents: Extents::new(),
        operation_time_ns,
        change_time_ns: operation_time_ns as i64,
        inode: node << 8 | step << 7 | number,
        flags: 0,
    }
}

fn write_segment(file: &File, plan: &SegmentPlan, end: u64) -> Result<u64, Failure> {
    let mut checksummer = FileChecksummer::default();
    checksummer.hole(FILE_BYTES);
    let checksums = vec![Some(checksummer.finish()); plan.entries().len()];
    for index in 0..plan.entries().len() {
        let (offset, header) = plan.header(index).ok_or("a file has no header")?;
        file.write_all_at(&header, end + offset)?;
    }
    file.write_all_at(&plan.toc(&checksums), end + plan.toc_offset())?;
    file.write_all_at(&plan.head(), end)?;
    Ok(plan.length())
}

/// Runs the program twice, from the same state: with its calls counted, and as it is.
fn cost(store: &Path, arguments: &[&str]) -> Result<Cost, Failure> {
    let catalogs = catalogs(store)?;
    let (operations, read_bytes) = count(store, &program()?, READING, arguments)?;
    if arguments[0] == "catalog" {
        self::catalogs(store)?.into_iter().try_for_each(|(path, _)| fs::remove_file(path))?;
        catalogs.iter().try_for_each(|(path, bytes)| fs::write(path, bytes))?;
    }
    let since = Instant::now();
    let child = Command::new(program()?).args(arguments).stdout(Stdio::null()).spawn()?;
    let memory_mib = peak_memory_mib(&child)?;
    Ok(Cost { operations, read_bytes, seconds: since.elapsed().as_secs_f64(), memory_mib })
}

fn catalogs(store: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Failure> {
    let mut catalogs = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "catalog") {
            catalogs.push((path.clone(), fs::read(path)?));
        }
    }
    Ok(catalogs)
}

/// The calls that name the store or what is in it but for reading, and the bytes that were read there.
fn count(store: &Path, program: &Path, calls: &str, arguments: &[&str]) -> Result<(usize, u64), Failure> {
    // A log of each thread: in a common one, calls are torn apart.
    let logs = tempfile::tempdir()?;
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-qq", "-y", "-s", "0", "-e", &format!("trace={calls}"), "-o"]);
    strace.arg(logs.path().join("of"));
    let status = strace.arg(program).args(arguments).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("`{}` ended with {status}", arguments.join(" ")).into());
    }
    let store = store.to_string_lossy();
    let (mut operations, mut read_bytes) = (0, 0);
    for log in fs::read_dir(logs.path())? {
        let text = fs::read_to_string(log?.path())?;
        for line in text.lines().filter(|line| line.contains(&*store) && !line.starts_with("execve(")) {
            if line.starts_with("read(") || line.starts_with("pread64(") {
                let result = line.rsplit_once("= ").and_then(|(_, result)| result.trim().parse::<u64>().ok());
                read_bytes += result.unwrap_or(0);
            } else {
                operations += 1;
            }
        }
    }
    Ok((operations, read_bytes))
}

fn peak_memory_mib(child: &Child) -> Result<f64, Failure> {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are to memory of the right types that outlives the call.
    let ended = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) };
    if ended < 0 || status != 0 {
        return Err(format!("the program ended with status {status}").into());
    }
    // SAFETY: all bytes are zero or written by the kernel, and any are an rusage.
    let usage = unsafe { usage.assume_init() };
    Ok(usage.ru_maxrss as f64 / 1024.0)
}

fn program() -> Result<PathBuf, Failure> {
    Ok(std::env::current_exe()?.with_file_name("sheaf"))
}
