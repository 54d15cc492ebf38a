//! Measures capture and flush beside what they compete with, in interleaved rounds of one run, and prints medians as
//! ratios. It decides nothing: these are figures for people, not a test.
//!
//! Usage: `measure [DIRECTORY] [FILES] [MIB_PER_FILE] [ROUNDS]`. DIRECTORY stands for the parallel file system.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one round yields, in seconds.
#[derive(Default)]
struct Series {
    /// The program on the stage's file system, without Sheaf.
    native_stage: Vec<f64>,
    /// The same program under Sheaf: how long it is held up.
    captured: Vec<f64>,
    /// From the program's start until everything is published.
    published: Vec<f64>,
    /// Processor time of the flusher per GiB.
    flusher_cpu: Vec<f64>,
    /// The program writing to the target, with fsync.
    direct: Vec<f64>,
    /// fio to a new file on the target: sequential, O_DIRECT, 4 MiB x 8, fdatasync at the end.
    fio: Vec<f64>,
    /// Restart: the program reading everything back after the stage was wiped.
    restart: Vec<f64>,
    /// Reading the same files natively from the target with a cold cache.
    cold_read: Vec<f64>,
}

struct Plan {
    target: PathBuf,
    stage: tempfile::TempDir,
    binaries: PathBuf,
    files: usize,
    mib: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("write") => {
            return write_files(
                Path::new(&arguments[1]),
                number(&arguments[2]),
                number(&arguments[3]),
                arguments.len() > 4,
            );
        }
        Some("read") => return read_files(Path::new(&arguments[1]), number(&arguments[2])),
        _ => {}
    }
    let argument = |index: usize, default: usize| arguments.get(index).map_or(default, |text| number(text));
    let exe = std::env::current_exe().expect("this program has a path");
    let binaries = exe.parent().expect("it lies in a directory").to_path_buf();
    let target = arguments.first().map_or_else(|| binaries.join("measure-target"), PathBuf::from);
    fs::create_dir_all(&target).expect("the target can be made");
    let plan = Plan {
        target: target.canonicalize().expect("it exists"),
        stage: tempfile::Builder::new().prefix("sheaf-measure-").tempdir_in("/dev/shm").expect("room in /dev/shm"),
        binaries,
        files: argument(1, 16),
        mib: argument(2, 64),
    };
    let mut series = Series::default();
    for round in 1..=argument(3, 5) {
        eprintln!("round {round}");
        one_round(&plan, &mut series);
    }
    report(&plan, &series);
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("'{text}' is not a number"))
}

/// The measured program: writes FILES files of MIB MiB and prints the seconds that took.
fn write_files(directory: &Path, files: usize, mib: usize, sync: bool) {
    let block: Vec<u8> = (0..1u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let start = Instant::now();
    for index in 0..files {
        let mut file = File::create(directory.join(format!("rank{index}.dat"))).expect("a file can be made");
        for _ in 0..mib {
            file.write_all(&block).expect("there is room");
        }
        if sync {
            file.sync_data().expect("it can be synced");
        }
    }
    println!("{}", start.elapsed().as_secs_f64());
}

fn read_files(directory: &Path, files: usize) {
    let start = Instant::now();
    let mut bytes = 0;
    for index in 0..files {
        bytes += fs::read(directory.join(format!("rank{index}.dat"))).expect("the file is there").len();
    }
    assert!(bytes > 0);
    println!("{}", start.elapsed().as_secs_f64());
}

impl Plan {
    fn program(&self, arguments: &[&str], preloaded: bool) -> f64 {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(arguments).stderr(Stdio::inherit());
        if preloaded {
            command.env("LD_PRELOAD", self.binaries.join("libsheaf.so"));
            self.settings(&mut command);
        }
        let output = command.output().expect("this program runs");
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("it prints seconds")
    }

    fn settings(&self, command: &mut Command) {
        command.env("SHEAF_PATHS", self.target.join("ckpt/**")).env("SHEAF_STAGE", self.stage.path());
    }

    fn sheaf(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.binaries.join("sheaf"));
        self.settings(&mut command);
        let output = command.args(arguments).output().expect("sheaf runs");
        assert!(output.status.success(), "sheaf {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn one_round(plan: &Plan, series: &mut Series) {
    let (files, mib) = (plan.files.to_string(), plan.mib.to_string());
    let place = |name: &str| {
        let path = plan.target.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the target is writable");
        path.display().to_string()
    };
    let native = plan.stage.path().join("native");
    fs::create_dir_all(&native).expect("the stage is writable");
    series.native_stage.push(plan.program(&["write", &native.display().to_string(), &files, &mib], false));
    fs::remove_dir_all(&native).expect("it is ours");

    let captured = place("ckpt");
    let start = Instant::now();
    series.captured.push(plan.program(&["write", &captured, &files, &mib], true));
    plan.sheaf(&["wait"]);
    series.published.push(start.elapsed().as_secs_f64());
    series.flusher_cpu.push(flusher_cpu(plan) / gib(plan));
    plan.sheaf(&["drain"]);
    wipe_stage(plan);
    drop_caches();
    series.restart.push(plan.program(&["read", &captured, &files], true));
    plan.sheaf(&["drain"]);
    wipe_stage(plan);
    fs::remove_dir_all(plan.target.join("ckpt")).expect("it is ours");

    let direct = place("direct");
    series.direct.push(plan.program(&["write", &direct, &files, &mib, "sync"], false));
    drop_caches();
    series.cold_read.push(plan.program(&["read", &direct, &files], false));
    fs::remove_dir_all(&direct).expect("it is ours");
    series.fio.push(fio(plan));
}

fn wipe_stage(plan: &Plan) {
    for entry in fs::read_dir(plan.stage.path()).expect("the stage is ours").flatten() {
        fs::remove_dir_all(entry.path()).expect("the flusher has left");
    }
}

/// Needs root; without it the "cold" rows are warm, and the report says so.
fn drop_caches() -> bool {
    let _ = Command::new("sync").status();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn gib(plan: &Plan) -> f64 {
    (plan.files * plan.mib) as f64 / 1024.0
}

/// User and system seconds of the flusher so far (proc(5), fields 14 and 15, in ticks of 1/100 s).
fn flusher_cpu(plan: &Plan) -> f64 {
    let status: serde_json::Value = serde_json::from_str(&plan.sheaf(&["status", "--json"])).expect("status is JSON");
    let text = fs::read_to_string(format!("/proc/{}/stat", status["pid"])).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

fn fio(plan: &Plan) -> f64 {
    let file = plan.target.join("fio.dat");
    let _ = fs::remove_file(&file);
    let output = Command::new("fio")
        .args([
            "--name=seq",
            "--rw=write",
            "--bs=4M",
            "--iodepth=8",
            "--ioengine=io_uring",
            "--direct=1",
            "--end_fsync=1",
        ])
        .arg(format!("--size={}M", plan.files * plan.mib))
        .arg(format!("--filename={}", file.display()))
        .arg("--output-format=json")
        .output();
    let _ = fs::remove_file(&file);
    let Ok(output) = output else { return f64::NAN };
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    json["jobs"][0]["job_runtime"]
        .as_f64()
        .map_or(f64::NAN, |milliseconds| Duration::from_secs_f64(milliseconds / 1000.0).as_secs_f64())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(plan: &Plan, series: &Series) {
    let size = format!("{} files of {} MiB", plan.files, plan.mib);
    println!("{size}, medians of {} rounds; target {}", series.fio.len(), plan.target.display());
    println!("| what | seconds, median (all rounds) |\n| --- | --- |");
    for (what, values) in [
        ("the program writing to tmpfs, without Sheaf", &series.native_stage),
        ("the program under Sheaf: how long it is held up", &series.captured),
        ("from its start until everything is published", &series.published),
        ("the program writing to the target with fdatasync", &series.direct),
        ("fio, new file on the target, O_DIRECT, 4 MiB x 8, fsync", &series.fio),
        ("restart from the aggregate alone, reading everything", &series.restart),
        ("reading the same files from the target, cold", &series.cold_read),
        ("flusher, processor seconds per GiB", &series.flusher_cpu),
    ] {
        let all: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
        println!("| {what} | {:.2} ({}) |", median(values), all.join(", "));
    }
    println!("| ratio | |\n| --- | --- |");
    for (what, over, under) in [
        ("held up, against tmpfs without Sheaf", &series.captured, &series.native_stage),
        ("held up, against writing to the target", &series.captured, &series.direct),
        ("published, against fio", &series.published, &series.fio),
        ("restart, against reading from the target", &series.restart, &series.cold_read),
    ] {
        println!("| {what} | {:.2} |", median(over) / median(under));
    }
    if !drop_caches() {
        println!("The caches could not be dropped (that needs root): the reading rows are warm.");
    }
}
