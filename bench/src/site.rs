//! One target with a stage in memory, the built library and program, and ways to run programs there.
//!
//! Everything starts from the same state: an empty stage, an empty directory, memory that has been written to just now
//! where much of it is needed, and cold caches where reading is measured.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::Failure;
use crate::target::Target;

/// Where the stage is, unless it is moved.
pub const MEMORY: &str = "/dev/shm";

/// See the module.
pub struct Site {
    /// What stands for the parallel file system.
    pub target: Target,
    stage: tempfile::TempDir,
    binaries: PathBuf,
    /// SHEAF_LAYOUT.
    layout: Cell<&'static str>,
    /// How much memory is written to before each measure.
    touched_bytes: Cell<u64>,
}

/// Programs that are ready, and wait for the word.
pub struct Ready {
    programs: Vec<Child>,
}

impl Site {
    /// A site on this target, with the binaries beside this program.
    pub fn new(target: Target) -> Result<Site, Failure> {
        let program = std::env::current_exe()?;
        let binaries = program.parent().ok_or("this program has no directory")?.to_path_buf();
        let stage = tempfile::Builder::new().prefix("sheaf-bench-").tempdir_in(MEMORY)?;
        Ok(Site { target, stage, binaries, layout: Cell::new("node"), touched_bytes: Cell::new(0) })
    }

    /// Has the stage from now on in this directory.
    pub fn move_stage(&mut self, directory: &Path) -> Result<(), Failure> {
        self.stage = tempfile::Builder::new().prefix("sheaf-bench-").tempdir_in(directory)?;
        Ok(())
    }

    /// Has everything go to the store in another layout from now on.
    pub fn set_layout(&self, layout: &'static str) {
        self.layout.set(layout);
    }

    /// Has so much memory written to before each measure from now on.
    pub fn set_touched_bytes(&self, bytes: u64) {
        self.touched_bytes.set(bytes);
    }

    /// An empty directory on the target.
    pub fn place(&self, name: &str) -> Result<PathBuf, Failure> {
        emptied(self.target.place.join(name))
    }

    /// An empty directory on the stage's file system, outside the stage.
    pub fn stage_place(&self, name: &str) -> Result<PathBuf, Failure> {
        emptied(self.stage.path().join(name))
    }

    fn settings(&self, command: &mut Command) {
        command.env("SHEAF_PATHS", self.target.place.join("ckpt/**")).env("SHEAF_STAGE", self.stage.path());
        command.env("SHEAF_LAYOUT", self.layout.get());
    }

    /// Starts `processes` of the measured programs; each is ready to begin.
    pub fn start(&self, processes: usize, captured: bool, arguments: &[String]) -> Result<Ready, Failure> {
        let mut programs = Vec::new();
        for number in 0..processes {
            let mut command = Command::new(std::env::current_exe()?);
            let arguments = arguments.iter().map(|argument| argument.replace("RANK", &format!("rank{number}")));
            command.arg("work").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            if captured {
                command.env("LD_PRELOAD", self.binaries.join("libsheaf.so"));
                self.settings(&mut command);
            }
            programs.push(command.spawn()?);
        }
        for program in &mut programs {
            let mut line = [0; 6];
            program.stdout.as_mut().ok_or("no output")?.read_exact(&mut line)?;
            if &line != b"ready\n" {
                return Err("a measured program is not ready".into());
            }
        }
        touch_memory(self.touched_bytes.get());
        Ok(Ready { programs })
    }

    /// Starts programs and lets them run: the seconds of the slowest.
    pub fn run(&self, processes: usize, captured: bool, arguments: &[String]) -> Result<f64, Failure> {
        self.start(processes, captured, arguments)?.go()
    }

    /// `sheaf` with this site's settings.
    pub fn sheaf(&self, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(self.binaries.join("sheaf"));
        self.settings(&mut command);
        let output = command.args(arguments).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("sheaf {arguments:?}: {text}").into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The process id of the flusher.
    pub fn flusher(&self) -> Result<i32, Failure> {
        let status: serde_json::Value = serde_json::from_str(&self.sheaf(&["status", "--json"])?)?;
        let process = status["pid"].as_i64().ok_or("no flusher runs")?;
        Ok(process as i32)
    }

    /// Lets programs that are ready write while the flusher is stopped: all is staged then, and nothing published.
    pub fn stage(&self, programs: Ready) -> Result<Stopped, Failure> {
        self.sheaf(&["wait"])?;
        let stopped = Stopped { flusher: self.flusher()? };
        // SAFETY: kill takes two integers; the flusher is this site's own.
        unsafe { libc::kill(stopped.flusher, libc::SIGSTOP) };
        programs.go()?;
        Ok(stopped)
    }

    /// Removes the stage, as a reboot does.
    pub fn wipe_stage(&self) -> Result<(), Failure> {
        for entry in fs::read_dir(self.stage.path())? {
            fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }

    /// Drains, and removes the stage and everything that was captured.
    pub fn clear(&self) -> Result<(), Failure> {
        self.sheaf(&["drain"])?;
        self.wipe_stage()?;
        fs::remove_dir_all(self.target.place.join("ckpt"))?;
        Ok(())
    }

    /// Files in the store.
    pub fn store_files(&self) -> Result<usize, Failure> {
        Ok(fs::read_dir(self.target.place.join("ckpt/.sheaf"))?.count())
    }

    /// Runs a program that copies, and waits until the target has everything: seconds, and processor seconds.
    pub fn copy(&self, words: &[&str]) -> Result<(f64, f64), Failure> {
        touch_memory(self.touched_bytes.get());
        let before = children_cpu();
        let start = Instant::now();
        for words in [words, &["sync", "-f", &self.target.place.display().to_string()]] {
            let output = Command::new(words[0]).args(&words[1..]).output()?;
            if !output.status.success() {
                return Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
        }
        Ok((start.elapsed().as_secs_f64(), children_cpu() - before))
    }
}

/// Writes so much to memory, as far as there is room, and frees it. Of memory that was free for some seconds the host of
/// a virtual machine may have taken the pages back, and whoever comes first waits for it to give others.
fn touch_memory(bytes: u64) {
    let Ok(mut file) = tempfile::tempfile_in(MEMORY) else { return };
    let block = vec![1; 1 << 20];
    for _ in 0..bytes >> 20 {
        if file.write_all(&block).is_err() {
            return;
        }
    }
}

/// A flusher that is stopped, until it is told to go on.
pub struct Stopped {
    /// Its process.
    pub flusher: i32,
}

impl Stopped {
    /// Lets it do its work.
    pub fn go_on(&self) {
        // SAFETY: kill takes two integers; the flusher is the site's own.
        unsafe { libc::kill(self.flusher, libc::SIGCONT) };
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.go_on();
    }
}

fn emptied(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}

impl Ready {
    /// Lets the programs run to their end. One says its own seconds; for several it is the time until the last has
    /// ended its work, because they share the processors.
    pub fn go(mut self) -> Result<f64, Failure> {
        let start = Instant::now();
        for program in &mut self.programs {
            program.stdin.as_mut().ok_or("no input")?.write_all(b"go\n")?;
        }
        let mut own = 0.0;
        for program in &mut self.programs {
            let mut line = String::new();
            BufReader::new(program.stdout.take().ok_or("no output")?).read_line(&mut line)?;
            own = line.trim().parse()?;
        }
        let all = start.elapsed().as_secs_f64();
        for program in &mut self.programs {
            if !program.wait()?.success() {
                return Err("a measured program failed".into());
            }
        }
        Ok(if self.programs.len() == 1 { own } else { all })
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        for program in &mut self.programs {
            // One that has ended already cannot be killed, which is as well.
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Empties the page cache. False when that is not allowed: what is read then is warm.
pub fn drop_caches() -> bool {
    let _ = Command::new("sync").status();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Processor seconds, user and system, of a process so far, all its threads included.
pub fn process_cpu(process: i32) -> f64 {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: `clock` and `time` are valid places for the answers.
    let is_read =
        unsafe { libc::clock_getcpuclockid(process, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0 };
    if is_read { time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 } else { f64::NAN }
}

/// Resident memory of a process in MiB, without the mappings of files in memory (the stage).
pub fn resident_mib(process: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN)
    };
    (kib("RssAnon:") + kib("RssFile:")) / 1024.0
}

/// Processor seconds of all children that have ended.
fn children_cpu() -> f64 {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// What fio took.
#[derive(Clone, Copy, Debug)]
pub struct Fio {
    /// From its first request to its last, synced.
    pub seconds: f64,
    /// Processor seconds in the same time.
    pub cpu_seconds: f64,
}

/// fio's best way through a new or existing file with O_DIRECT, its buffers being pages of the file `pages`, as those
/// of staged files are; nothing where fio is missing.
pub fn fio(file: &Path, pages: &Path, mode: &str, size_bytes: u64, block_mib: u64, depth: u64) -> Option<Fio> {
    // What fio puts into its buffers, and a page for their alignment, must fit.
    fs::File::create(pages).ok()?.set_len(((block_mib * depth) << 20) + (1 << 16)).ok()?;
    let mut command = Command::new("fio");
    command.args(["--name=sequential", "--ioengine=io_uring", "--direct=1", "--output-format=json"]);
    command.args(if mode == "write" { vec!["--rw=write", "--end_fsync=1"] } else { vec!["--rw=read"] });
    command.arg(format!("--iomem=mmapshared:{}", pages.display()));
    command.arg(format!("--bs={block_mib}M")).arg(format!("--iodepth={depth}"));
    command.arg(format!("--size={size_bytes}")).arg(format!("--filename={}", file.display()));
    let output = command.output().ok()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let job = &json["jobs"][0];
    let seconds = job["job_runtime"].as_f64()? / 1000.0;
    let busy_percent = job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?;
    Some(Fio { seconds, cpu_seconds: seconds * busy_percent / 100.0 })
}
