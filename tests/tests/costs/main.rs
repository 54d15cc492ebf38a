//! What the library costs a program, in instructions and system calls: counts, so that neither the machine nor its load
//! has a part in them. `scripts/costs.sh` writes the table that this makes into `tests/COSTS.md`.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::scene::{artefact, workspace};
use sheaf_tests::{Engine, Scene, process};

/// Instructions that a call may cost more on a path in a system directory: what it costs now, and a tenth. 60 is aimed
/// at.
const SYSTEM_BAR: u64 = 60;
/// The same outside of these, where a readlink must tell whether the name leads to a checkpoint.
const OUTSIDE_BAR: u64 = 450;
/// Instructions of the program's start.
const START_BAR: u64 = 84_000;
/// Instructions that a write and a close of a captured file may cost more: a call in between and a branch on what comes
/// of it.
const DATA_BAR: u64 = 28;
/// System calls of the flusher for one small file, from its creation until it is published: what it makes now, and a
/// third.
const PUBLISH_CALLS_BAR: u64 = 11;
/// Instructions of the flusher for the same, in user space: what it takes now, and a tenth.
const PUBLISH_INSTRUCTIONS_BAR: u64 = 43_000;
/// System calls that a captured open of a new file may make more: three looks for the name, and one for room. 6 are
/// aimed at.
const OPEN_CALLS_BAR: u64 = 4;
/// Size of the library without what only debuggers read.
const SIZE_BAR_BYTES: u64 = 540_000;

/// One line of the table.
struct Line {
    what: String,
    native: u64,
    preloaded: u64,
    bar: u64,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Count {
    Instructions,
    SystemCalls,
}

/// The program that makes the calls.
fn compile(scene: &Scene) -> std::path::PathBuf {
    let made = scene.root().join("costs");
    let mut compiler = scene.native_command("gcc");
    compiler.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made);
    process::run(compiler.arg(workspace().join("tests/programs/costs.c"))).expect_success();
    made
}

/// The least instructions of any round: what is remembered may be forgotten in between.
fn instructions(scene: &Scene, command: &Command) -> u64 {
    let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours");
    let mut valgrind = under(scene, command, "valgrind");
    let out = format!("--callgrind-out-file={}", directory.path().join("out").display());
    valgrind.args(["-q", "--tool=callgrind", "--combine-dumps=no", &out]);
    process::run(valgrind.arg(command.get_program()).args(command.get_args())).expect_success();
    let dumps = fs::read_dir(directory.path()).expect("callgrind wrote").map(|entry| {
        let text = fs::read_to_string(entry.expect("callgrind wrote").path()).expect("a dump is text");
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
        (text.contains("Client Request"), totals.expect("a dump has totals").trim().parse().expect("a number"))
    });
    let dumps: Vec<(bool, u64)> = dumps.collect();
    let asked_for = dumps.iter().filter(|(asked_for, _)| *asked_for || dumps.len() == 1);
    asked_for.map(|(_, count)| *count).min().expect("callgrind wrote")
}

/// The least system calls of any round.
fn system_calls(scene: &Scene, command: &Command) -> u64 {
    let log = scene.root().join("trace");
    let options = ["-qq", "-o", log.to_str().expect("ours")];
    process::run(&mut scene.traced(&options, command)).expect_success();
    let text = fs::read_to_string(&log).expect("strace wrote its log");
    // The first part is the program's start. Every other one lies between two marks of a round; the rest of the mark's
    // own line comes first.
    let rounds = text.split("getppid()").skip(1).step_by(2).map(|round| round.lines().skip(1).count() as u64);
    rounds.min().expect("the program marks its calls")
}

/// A tool with the environment of `command`.
fn under(scene: &Scene, command: &Command, tool: &str) -> Command {
    let mut tool = scene.native_command(tool);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tool.env(name, value),
            None => tool.env_remove(name),
        };
    }
    tool
}

/// Counts a call on the same path with and without the library.
fn call(scene: &Scene, program: &Path, count: Count, call: &str, paths: [&Path; 2], what: &str, bar: u64) -> Line {
    let (mut native, mut preloaded) = (scene.native_command(program), scene.preloaded_command(program));
    native.arg(call).arg(paths[0]);
    preloaded.arg(call).arg(paths[1]);
    let counted = |command| match count {
        Count::Instructions => instructions(scene, command),
        Count::SystemCalls => system_calls(scene, command),
    };
    Line { what: format!("{call}: {what}"), native: counted(&native), preloaded: counted(&preloaded), bar }
}

/// Prints the table into `table`; yields what is beyond its bar.
fn show(table: &mut String, title: &str, lines: Vec<Line>) -> Vec<String> {
    writeln!(table, "\n| {title} | native | with Sheaf | more | at most |\n| --- | ---: | ---: | ---: | ---: |")
        .unwrap();
    let mut beyond = Vec::new();
    for Line { what, native, preloaded, bar } in lines {
        let more = preloaded as i64 - native as i64;
        writeln!(table, "| {what} | {native} | {preloaded} | {more} | {bar} |").unwrap();
        if more > bar as i64 {
            beyond.push(format!("{what}: {more} more, and {bar} are allowed"));
        }
    }
    beyond
}

/// Instructions of calls that do not concern Sheaf.
fn untouched(scene: &Scene, program: &Path) -> Vec<Line> {
    let outside = tempfile::Builder::new().prefix("sheaf-costs-").tempdir_in("/tmp").expect("room in /tmp");
    let input = outside.path().join("input.dat");
    fs::write(&input, "input").expect("the directory is ours");
    let mut lines = Vec::new();
    for path in ["/etc/passwd", "/usr/include/valgrind/callgrind.h"] {
        for name in ["open", "stat", "lstat", "access", "fopen"] {
            let paths = [Path::new(path); 2];
            lines.push(call(scene, program, Count::Instructions, name, paths, &format!("`{path}`"), SYSTEM_BAR));
        }
    }
    lines.push(call(
        scene,
        program,
        Count::Instructions,
        "open",
        [Path::new("/dev/null"); 2],
        "`/dev/null`",
        SYSTEM_BAR,
    ));
    let paths = [input.as_path(); 2];
    for name in ["open", "stat", "lstat", "access", "fopen"] {
        let what = "`/tmp/sheaf-costs-XXXXXX/input.dat`";
        lines.push(call(scene, program, Count::Instructions, name, paths, what, OUTSIDE_BAR));
    }
    let file = scene.checkpoints().join("file");
    fs::write(scene.native_directory().join("ckpt/file"), "file").expect("the scene is ours");
    let write = format!("echo file > {}", file.display());
    scene.preloaded(&["sh", "-c", &write]);
    let paths = [&scene.native_directory().join("ckpt/file"), file.as_path()];
    for (name, bar) in [("read", 0), ("write", DATA_BAR), ("close", DATA_BAR)] {
        lines.push(call(scene, program, Count::Instructions, name, paths, "of a captured file", bar));
    }
    lines
}

/// System calls: of opens and looks, captured and not.
fn kernel(scene: &Scene, program: &Path) -> Vec<Line> {
    let native = scene.native_directory().join("ckpt/file");
    let captured = scene.checkpoints().join("file");
    let mut lines = Vec::new();
    let paths = [native.as_path(), &captured];
    for (name, what, bar) in [
        ("create", "captured", OPEN_CALLS_BAR),
        ("open", "captured", 3),
        ("stat", "captured", 0),
        ("read", "captured", 0),
        ("write", "captured", 0),
        ("close", "captured", 0),
    ] {
        lines.push(call(scene, program, Count::SystemCalls, name, paths, what, bar));
    }
    for (name, path, bar) in [("open", "/etc/passwd", 0), ("stat", "/etc/passwd", 0)] {
        lines.push(call(scene, program, Count::SystemCalls, name, [Path::new(path); 2], "system directory", bar));
    }
    let outside = tempfile::Builder::new().prefix("sheaf-costs-").tempdir_in("/tmp").expect("room in /tmp");
    let input = outside.path().join("input.dat");
    fs::write(&input, "input").expect("the directory is ours");
    for (name, bar) in [("open", 1), ("stat", 1), ("lstat", 0)] {
        lines.push(call(scene, program, Count::SystemCalls, name, [&input, &input], "elsewhere", bar));
    }
    lines
}

/// The start of a program that names no path.
fn start(scene: &Scene) -> Line {
    let (native, preloaded) = (scene.native_command("/bin/true"), scene.preloaded_command("/bin/true"));
    Line {
        what: "`/bin/true`".to_string(),
        native: instructions(scene, &native),
        preloaded: instructions(scene, &preloaded),
        bar: START_BAR,
    }
}

/// Calls whose number says how often the flusher was woken, and not what it did for a file.
const WAITING: [&str; 5] = ["futex", "ppoll", "read", "accept4", "sched_yield"];

/// A copy of the library beside a `sheaf` that is traced, with a summary for each process: the flusher that the program
/// starts is traced. One that is started at hand may come too late, or have ended when the program comes.
fn install_traced(scene: &Scene, tracer: &str) -> std::path::PathBuf {
    let directory = scene.root().join("traced");
    let library = directory.join("libsheaf.so");
    fs::create_dir(&directory).expect("the scene is ours");
    fs::copy(artefact("libsheaf.so"), &library).expect("the scene is ours");
    let script = format!("#!/bin/sh\nexec {tracer} '{}' \"$@\"\n", artefact("sheaf").display());
    fs::write(directory.join("sheaf"), script).expect("the scene is ours");
    fs::set_permissions(directory.join("sheaf"), fs::Permissions::from_mode(0o755)).expect("the scene is ours");
    library
}

/// System calls, those that wait apart, of a flusher that lives as long as a program which makes so many files of 4
/// KiB.
fn flusher_calls(files: u64) -> u64 {
    let counts = traced_flusher(files, "strace -f -qq -c -o \"$(mktemp 'LOGS'/XXXXXX)\"", |text| {
        counts(text).filter(|counts| counts.iter().any(|(name, calls)| name == "openat" && *calls >= files))
    });
    let working = counts.iter().filter(|(name, _)| name != "total" && !WAITING.contains(&name.as_str()));
    working.map(|(_, calls)| calls).sum()
}

/// Instructions in user space of the same.
fn flusher_instructions(files: u64) -> u64 {
    let tracer = "valgrind -q --tool=callgrind --callgrind-out-file='LOGS'/%p";
    traced_flusher(files, tracer, |text| {
        let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.parse().ok();
        // Nothing that has published so many takes so few.
        total.filter(|total| *total > 1000 * files)
    })
}

/// What a tracer has to say of a flusher that publishes so many files of 4 KiB; `LOGS` stands for where it says that.
/// `read` yields nothing for what is not whole, or of a flusher that was too late to serve the stage.
fn traced_flusher<T>(files: u64, tracer: &str, read: impl Fn(&str) -> Option<T>) -> T {
    let scene = Scene::new(Engine::IoUring);
    let logs = scene.root().join("summaries");
    fs::create_dir(&logs).expect("the scene is ours");
    let library = install_traced(&scene, &tracer.replace("LOGS", &logs.display().to_string()));
    // The flusher stands still meanwhile: a batch that is made while files come and go is made several times.
    let script = format!(
        "import json, os, signal, subprocess
open('ckpt/first', 'wb').close()
status = subprocess.check_output(['env', '-u', 'LD_PRELOAD', '{}', 'status', '--json'])
flusher = json.loads(status)['pid']
os.kill(flusher, signal.SIGSTOP)
for number in range({files}):
    with open(f'ckpt/{{number}}', 'wb') as file: file.write(b'x' * 4096)
os.kill(flusher, signal.SIGCONT)",
        artefact("sheaf").display()
    );
    let mut program = scene.preloaded_command("python3");
    process::run(program.env("LD_PRELOAD", library).args(["-c", &script])).expect_success();
    scene.drain();
    await_summary(&logs, files, read)
}

/// What the tracer has said when the flusher has ended.
fn await_summary<T>(logs: &Path, files: u64, read: impl Fn(&str) -> Option<T>) -> T {
    let patience = Instant::now();
    loop {
        let logs = fs::read_dir(logs).expect("the scene is ours").map(|log| log.expect("ours").path());
        let summaries: Vec<_> = logs.map(|log| fs::read_to_string(log).unwrap_or_default()).collect();
        if let Some(found) = summaries.iter().find_map(|text| read(text)) {
            return found;
        }
        let is_late = patience.elapsed() >= Duration::from_secs(60);
        assert!(!is_late, "no summary of a flusher with {files} files:\n{}", summaries.join("\n"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The calls in a summary of strace, by name; nothing while it is not all there. Its lines are `PERCENT SECONDS
/// MICROSECONDS CALLS [ERRORS] NAME`, the last one of the total; what else strace has to say starts with a number that
/// is none of percent.
fn counts(summary: &str) -> Option<Vec<(String, u64)>> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_counted = fields.first().is_some_and(|percent| percent.contains('.') && percent.parse::<f64>().is_ok());
        is_counted.then(|| Some((fields.last()?.to_string(), fields.get(3)?.parse().ok()?)))
    };
    let counts: Vec<(String, u64)> = summary.lines().filter_map(of_line).collect::<Option<_>>()?;
    counts.last().is_some_and(|(name, _)| name == "total").then_some(counts)
}

/// What the flusher takes for one small file. What it takes however many there are is left out.
fn publishing() -> (String, Vec<String>) {
    let (few, many) = (500, 4500);
    let mut text = "| the flusher, for one file of 4 KiB, until it is published | | at most |\n| --- | ---: | ---: |\n"
        .to_string();
    let mut beyond = Vec::new();
    for (what, count, bar) in [
        ("system calls, those that wait apart", flusher_calls as fn(u64) -> u64, PUBLISH_CALLS_BAR),
        ("instructions in user space", flusher_instructions, PUBLISH_INSTRUCTIONS_BAR),
    ] {
        let taken = (count(many) - count(few)).div_ceil(many - few);
        writeln!(text, "| {what} | {taken} | {bar} |").expect("a string takes what is written");
        if taken > bar {
            beyond.push(format!("the flusher, {what} for a small file: {taken}, and {bar} are allowed"));
        }
    }
    (text, beyond)
}

/// How large the library is, what it needs, and what it exports.
fn library(scene: &Scene) -> (String, u64) {
    let library = artefact("libsheaf.so");
    let stripped = scene.root().join("stripped.so");
    process::run(scene.native_command("strip").arg("-o").arg(&stripped).arg(&library)).expect_success();
    let size_bytes = fs::metadata(stripped).expect("strip wrote").len();
    let names = |which: &str| {
        let listed = process::run(scene.native_command("nm").args(["-D", which]).arg(&library)).expect_success().text();
        let names: Vec<String> =
            listed.lines().filter_map(|line| line.split(' ').next_back()).map(str::to_string).collect();
        names
    };
    let imports = names("--undefined-only").iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let exports = names("--defined-only").len();
    let text = format!(
        "| the library | |\n| --- | --- |\n| size, stripped | {size_bytes} bytes |\n| exported symbols | {exports} |\n| imported symbols | {imports} |\n"
    );
    (text, size_bytes)
}

#[test]
fn no_call_costs_more_than_its_bar() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene);
    let mut table = String::new();
    let mut beyond = show(&mut table, "instructions of one call", untouched(&scene, &program));
    beyond.extend(show(&mut table, "system calls of one call", kernel(&scene, &program)));
    beyond.extend(show(&mut table, "instructions of a program's start", vec![start(&scene)]));
    let (text, size_bytes) = library(&scene);
    let (publishing, beyond_publishing) = publishing();
    beyond.extend(beyond_publishing);
    table = format!("{table}\n{publishing}\n{text}");
    fs::write(workspace().join("target/costs.md"), &table).expect("the build directory is writable");
    if size_bytes > SIZE_BAR_BYTES {
        beyond.push(format!("the library has {size_bytes} bytes"));
    }
    assert!(beyond.is_empty(), "{beyond:#?}\n{table}");
}
