//! A process that never touches a checkpoint path: no flusher, no thread, no process, no file more than without Sheaf.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Instant;

use sheaf_tests::{Engine, Scene, process};

/// What a program did, as strace saw it: files opened or asked for, and processes or threads started.
struct Trace {
    paths: BTreeSet<String>,
    starts: usize,
}

fn trace(scene: &Scene, command: &Command) -> Trace {
    let log = scene.root().join("trace");
    // Looking at names without opening anything (readlink, stat) is how the library learns what a pattern's prefix is.
    let calls =
        "trace=process,network,open,openat,openat2,creat,memfd_create,mkdir,mkdirat,mknod,mknodat,unlink,unlinkat";
    let options = ["-f", "-qq", "-e", calls, "-o", log.to_str().expect("ours")];
    process::run(&mut scene.traced(&options, command)).expect_success();
    let text = fs::read_to_string(&log).expect("strace wrote its log");
    let calls = text.lines().filter(|line| !line.contains("execve("));
    Trace {
        paths: calls.clone().filter_map(|line| line.split('"').nth(1)).map(str::to_string).collect(),
        starts: calls.filter(|line| ["clone(", "clone3(", "fork("].iter().any(|call| line.contains(call))).count(),
    }
}

fn assert_quiet(arguments: &[&str]) {
    let scene = Scene::new(Engine::IoUring);
    let native = trace(&scene, scene.native_command(arguments[0]).args(&arguments[1..]));
    let preloaded = trace(&scene, scene.preloaded_command(arguments[0]).args(&arguments[1..]));
    assert_eq!(preloaded.starts, native.starts, "{arguments:?} starts more");
    let more: Vec<_> = preloaded.paths.difference(&native.paths).collect();
    // The loader's own: the library, and the libraries that it needs.
    let foreign = more.iter().filter(|path| !path.ends_with("libsheaf.so") && !path.contains("/libdl.so"));
    let foreign: Vec<_> = foreign.filter(|path| !path.contains("/libc.so")).collect();
    assert!(foreign.is_empty(), "{arguments:?} opens {foreign:?}");
    let left = fs::read_dir(scene.tier()).expect("the tier is ours").count();
    assert_eq!(left, 0, "{arguments:?} made a stage");
    assert!(scene.flushers().is_empty());
}

#[test]
fn a_program_that_does_nothing() {
    assert_quiet(&["/bin/true"]);
}

#[test]
fn a_listing_of_another_directory() {
    assert_quiet(&["ls", "-l", "/usr"]);
}

#[test]
fn a_copy_elsewhere() {
    assert_quiet(&["cp", "/etc/passwd", "../copied"]);
}

#[test]
fn every_call_is_told_when_that_is_asked_for_and_only_in_the_file() {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-c", "echo 1 >ckpt/a"]).expect_success();
    let log = scene.root().join("log");
    let mut command = scene.preloaded_command("cat");
    command.args(["/etc/hostname", "ckpt/a"]).env("SHEAF_LOG", format!("trace,{}", log.display()));
    let told = process::run(&mut command).expect_success();
    let quiet = scene.preloaded(&["cat", "/etc/hostname", "ckpt/a"]).expect_success();
    assert_eq!((told.text(), told.stderr), (quiet.text(), quiet.stderr));
    let lines = fs::read_to_string(&log).expect("the log was written");
    let first = lines.lines().next().unwrap_or_default();
    assert!(!first.contains("]   "), "the call comes before what its path means: {first}");
    let meaning = |path: &str| lines.lines().find(|line| line.contains(path)).map(|line| line.contains("captured"));
    assert_eq!(meaning("  /etc/hostname: "), Some(false), "{lines}");
    assert_eq!(meaning("  ckpt/a: "), Some(true), "{lines}");
}

/// Like `watch sheaf status`: the flusher ends all the same.
#[test]
fn whoever_watches_a_flusher_does_not_keep_it() {
    let scene = Scene::new(Engine::IoUring);
    scene.preloaded(&["bash", "-c", "echo captured >ckpt/file"]).expect_success();
    let deadline = Instant::now() + process::LIMIT;
    while scene.sheaf(&["status", "--json"]).expect_success().text().contains("\"running\":true") {
        assert!(Instant::now() < deadline, "the flusher stays for as long as it is watched");
    }
    // Nobody reaches it any more; it seals its aggregate and ends.
    for flusher in scene.flushers() {
        assert!(process::poll_end(flusher, process::LIMIT).unwrap_or(true), "the flusher never ends");
    }
}
