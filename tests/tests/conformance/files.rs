//! Layout `files`: when all is published, the checkpoint directory is what the same program makes of it natively.

use std::fs;
use std::path::Path;

use sheaf_tests::scene::artefact;
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process, snapshot};

const JOB: &str = "
    set -e
    cd ckpt
    mkdir -p step1 step2
    printf one > step1/a; printf 'two words' > step1/b; : > step1/empty
    truncate -s 3M step1/sparse; printf end | dd of=step1/sparse bs=1 seek=2000000 conv=notrunc status=none
    head -c 5000000 /dev/zero | tr '\\0' x > step1/large
    chmod 640 step1/a; chmod 400 step1/b; touch -d '2001-02-03 04:05:06.789012345' step1/a
    ln step1/large step1/further; ln -s a step1/latest; ln -s ../step1/large step2/up; ln -P step1/latest step2/again
    cp -p step1/a step2/copy; mv step2/copy step2/moved; printf tmp > step2/tmp; mv step2/tmp step2/state
    printf gone > step2/gone; rm step2/gone; mkdir step3; printf x > step3/x; mv step3 step4
    printf more >> step1/a; printf other > step2/state
";

/// Kind, mode, owner, size, number of names, target and name of everything below a directory.
fn listing(directory: &Path) -> String {
    let format = "%y %m %U:%G %s %n %l %P\\n";
    let output = std::process::Command::new("find").arg(directory).args(["-mindepth", "1", "-printf", format]).output();
    let text = String::from_utf8(output.expect("find is installed").stdout).expect("names are ASCII");
    let mut lines: Vec<_> = text.lines().map(str::to_string).collect();
    lines.sort();
    lines.join("\n")
}

fn assert_alike(scene: &Scene) {
    let native = scene.native_directory().join("ckpt");
    assert_eq!(
        snapshot::take(&scene.checkpoints()).expect("the scene is ours"),
        snapshot::take(&native).expect("the scene is ours")
    );
    assert_eq!(listing(&scene.checkpoints()), listing(&native));
}

#[test]
fn what_a_job_leaves_is_what_it_leaves_natively() {
    let scene = Scene::new(Engine::IoUring).in_layout("files");
    scene.native(&["bash", "-c", JOB]).expect_success();
    scene.preloaded(&["bash", "-c", JOB]).expect_success();
    scene.drain();
    assert_alike(&scene);
    let moved = fs::metadata(scene.checkpoints().join("step2/moved")).expect("it is there");
    let modified = moved.modified().expect("ext4 has times").duration_since(std::time::UNIX_EPOCH).expect("in 2001");
    assert_eq!(modified.subsec_nanos(), 789_012_345);
    assert!(!scene.store().exists(), "the store is only there for files on their way");
    let blocks = std::os::unix::fs::MetadataExt::blocks(
        &fs::metadata(scene.checkpoints().join("step1/sparse")).expect("it is there"),
    );
    assert!(blocks < 1000, "holes stay holes: {blocks} blocks");
}

/// The exit code is the program's, and nothing is said of files that "escaped".
#[test]
fn a_run_ends_when_the_files_are_there() {
    let scene = Scene::new(Engine::Pwrite).in_layout("files");
    let script = "seq 100000 > ckpt/state; exit 3";
    let finished = scene.sheaf(&["run", "--", "bash", "-c", script]);
    assert_eq!(finished.status.code(), Some(3), "{}", finished.describe());
    assert_eq!(String::from_utf8_lossy(&finished.stderr), "");
    let text = fs::read_to_string(scene.checkpoints().join("state")).expect("it is published");
    assert_eq!(text.lines().count(), 100_000);
    assert_eq!(scene.sheaf(&["ls", scene.store().to_str().expect("ours")]).status.code(), Some(2));
    assert_eq!(scene.sheaf(&["report"]).status.code(), Some(2));
}

/// A job in layout `files` between others whose files are in aggregates, with the stage of the one before or without:
/// what happened last is what is seen, whoever looks.
#[test]
fn stores_with_aggregates_are_gone_on_with() {
    const FIRST: &str =
        "set -e; cd ckpt; mkdir d; for n in 1 2 3 4 5 6 7; do echo first $n > d/f$n; done; ln -s f1 d/l; echo k > keep";
    const SECOND: &str = "set -e; cd ckpt; echo second > d/f1; rm d/f2; mv d/f3 d/g3; echo more >> d/f4; mv d/f5 d/f6; rm d/l; ln -s f7 d/l; \
                          chmod 600 d/f7; echo new > d/n1; echo away > d/n2; rm d/n2";
    const THIRD: &str =
        "set -e; cd ckpt; echo third > d/f2; echo third >> d/f1; mv d/n1 d/f7; cat d/f4 > d/n3; rm keep";
    for (wipes, last) in [(false, "files"), (true, "files"), (false, "node"), (true, "node")] {
        let mut scene = Scene::new(Engine::IoUring);
        for (layout, script) in [("node", FIRST), ("files", SECOND), (last, THIRD)] {
            scene = scene.in_layout(layout);
            scene.native(&["bash", "-c", script]).expect_success();
            scene.preloaded(&["bash", "-c", script]).expect_success();
            scene.assert_lasts(wipes, &format!("{wipes}, {last}, {layout}"));
        }
        scene.verify();
        scene.wipe_stage();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "{wipes}, {last}, in the end");
    }
}

/// A stage that was left behind does not bring back what another node has superseded since.
#[test]
fn an_older_version_that_was_left_staged_does_not_win() {
    let scene = Scene::new(Engine::IoUring).in_layout("files");
    let mut left = scene.preloaded_command("bash");
    left.env("SHEAF_ON_EXIT", "leave").args(["-c", "echo old > ckpt/state; echo own > ckpt/own"]);
    process::run(&mut left).expect_success();
    scene.kill_flushers();
    let real = scene.checkpoints().join("state");
    fs::write(&real, "newer\n").expect("the scene is ours");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(&real).and_then(|file| file.set_modified(later)).expect("the scene is ours");
    scene.drain();
    assert_eq!(fs::read_to_string(&real).expect("it is there"), "newer\n");
    assert_eq!(fs::read_to_string(scene.checkpoints().join("own")).expect("it is published"), "own\n");
    assert_eq!(scene.preloaded(&["cat", "ckpt/state"]).expect_success().text(), "newer\n");
    scene.drain();
}

/// What somebody has open stays where it is until it is closed; its name means the published file then, too.
#[test]
fn a_file_that_is_read_while_it_is_published_stays_right() {
    let scene = Scene::new(Engine::IoUring).in_layout("files");
    let sheaf = format!("env -u LD_PRELOAD {}", artefact("sheaf").display());
    let script = format!(
        "set -e; cd ckpt; echo one > a; exec 3<a; {sheaf} wait; test $(env -u LD_PRELOAD cat a) = one; mv a b; \
         test ! -e a; env -u LD_PRELOAD test ! -e a; test $(cat b) = one; test $(env -u LD_PRELOAD cat b) = one; \
         echo two >> b; test \"$(tr -d '\\n' < b)\" = onetwo; {sheaf} wait; test \"$(env -u LD_PRELOAD tr -d '\\n' < b)\" = onetwo; \
         rm b; env -u LD_PRELOAD test ! -e b; echo three > b; cat <&3 | grep -q two"
    );
    scene.preloaded(&["bash", "-exc", &script]).expect_success();
    scene.drain();
    assert_eq!(fs::read_to_string(scene.checkpoints().join("b")).expect("it is published"), "three\n");
    assert!(!scene.checkpoints().join("a").exists());
}

/// A mode that is set and a name that is given while the flusher is busy with something else: the first is on its way
/// to the target under the old name when the second has happened.
#[test]
fn a_mode_that_was_set_before_a_rename_is_not_forgotten() {
    let scene = Scene::new(Engine::IoUring).in_layout("files");
    let unreliable = Unreliable::new(scene.root(), &scene.checkpoints());
    let [gate, ready, changed] = ["gate", "ready", "changed"].map(|name| scene.captured_directory().join(name));
    process::run(scene.native_command("mkfifo").arg(&gate)).expect_success();
    // It has the file open, so that it stays in the stage when it is published.
    const CHANGE: &str = "import os
def write(name):
    with open(name, 'w') as state: state.write('state')
write('ckpt/a')
held = open('ckpt/a')
os.mknod('ready')
open('gate').read()
write('ckpt/slow')
open('gate').read()
os.chmod('ckpt/a', 0o604)
write('ckpt/third')
os.mknod('changed')
open('gate').read()
os.rename('ckpt/a', 'ckpt/b')";
    let company = process::start(scene.preloaded_command("python3").args(["-c", CHANGE])).await_file(&ready);
    let go_on = || fs::write(&gate, "").expect("the company reads it");
    let mut company = company;
    let mut await_flight = |count: u64| loop {
        let report = scene.sheaf(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&report.stdout).expect("it is JSON");
        if status["in_flight"].as_u64() == Some(count) {
            return;
        }
        assert!(!company.wait_for(std::time::Duration::from_millis(2)), "the company has ended");
    };
    scene.sheaf(&["wait"]).expect_success();
    unreliable.rule("fsync * hang");
    go_on();
    await_flight(1);
    go_on();
    await_flight(2);
    assert!(changed.exists());
    go_on();
    company.finish().expect_success();
    unreliable.rule("");
    scene.drain();
    let real = listing(&scene.checkpoints());
    assert!(real.starts_with("f 604 ") && real.contains(" b\n") && real.lines().count() == 3, "{real}");
    scene.wipe_stage();
    assert_eq!(scene.preloaded(&["cat", "ckpt/b"]).expect_success().text(), "state");
    scene.drain();
}

/// Renaming one name of a file to another of its names changes nothing, staged or published; so it is with symbolic
/// links.
#[test]
fn two_names_of_one_file_both_stay() {
    const MAKE: &str = "set -e; cd ckpt; echo data > file; ln -s file a; ln -P a b; ln file one";
    const RENAME: &str = "set -e; cd ckpt; python3 -c 'import os; os.rename(\"a\", \"b\"); os.rename(\"file\", \"one\")'; echo more >> one";
    for drains in [false, true] {
        let scene = Scene::new(Engine::IoUring).in_layout("files");
        for script in [MAKE, RENAME] {
            scene.native(&["bash", "-c", script]).expect_success();
        }
        match drains {
            true => {
                scene.preloaded(&["bash", "-c", MAKE]).expect_success();
                scene.drain();
                scene.preloaded(&["bash", "-c", RENAME]).expect_success();
            }
            false => drop(scene.preloaded(&["bash", "-c", &format!("{MAKE}; cd ..; {RENAME}")]).expect_success()),
        }
        scene.drain();
        assert_alike(&scene);
    }
}

/// A program that removes its last checkpoint but one waits until the last one is published: a node that is lost never
/// takes both.
#[test]
fn what_is_removed_goes_after_what_was_written_before() {
    let scene = Scene::new(Engine::IoUring).in_layout("files");
    let sheaf = format!("env -u LD_PRELOAD {}", artefact("sheaf").display());
    let script = format!(
        "set -e; cd ckpt; echo old > one; {sheaf} wait; head -c 4000000 /dev/zero > two; rm one; \
         env -u LD_PRELOAD sh -c 'test ! -e one; test $(stat -c %s two) = 4000000'"
    );
    let mut program = scene.preloaded_command("bash");
    process::run(program.env("SHEAF_BANDWIDTH", "4M").args(["-exc", &script])).expect_success();
    scene.drain();
}

/// Calls that ask something of a metadata server, or of a disk to be safe.
const METADATA: &str = "trace=%file,getdents64,fsync,fdatasync,ftruncate,fallocate,fchmod,fchown,utimensat";

/// Files below the checkpoint directory, and metadata operations on it, of one checkpoint until it is published.
fn costs(layout: Option<&'static str>, bytes: u32) -> (usize, usize) {
    const WRITE: &str = "import sys\nfor n in range(64):\n    with open(f'ckpt/rank-{n}', 'wb', buffering=0) as f: f.write(bytes(int(sys.argv[1])))";
    let scene = Scene::new(Engine::Pwrite).in_layout(layout.unwrap_or("node"));
    let log = scene.root().join("strace.log");
    let options = ["-f", "-y", "-e", METADATA, "-o", log.to_str().expect("ours")];
    let bytes = bytes.to_string();
    let mut command = match layout {
        Some(_) => scene.preloaded_command("python3"),
        None => scene.native_command("python3"),
    };
    command.args(["-c", WRITE, &bytes]);
    process::run(&mut scene.traced(&options, &command)).expect_success();
    let side = scene.checkpoints();
    let text = String::from_utf8_lossy(&fs::read(log).expect("strace writes its log")).into_owned();
    let tier = scene.tier().to_str().expect("ours");
    let is_on_target = |line: &&str| {
        let names = line.contains(side.to_str().expect("ours")) || layout.is_none() && line.contains("\"ckpt");
        names && !line.contains(tier) && !line.contains("execve") && !line.contains("resumed")
    };
    let files = listing(&side).lines().filter(|line| line.starts_with('f')).count();
    (files, text.lines().filter(is_on_target).count())
}

/// A table of what one checkpoint of 64 files costs the parallel file system. Flushers end by themselves, so all is
/// published.
#[test]
fn what_a_checkpoint_costs_the_target() {
    println!("| 64 files of | layout | files | metadata operations |\n| ---: | --- | ---: | ---: |");
    let layouts = [None, Some("node"), Some("shared:1"), Some("files")];
    for bytes in [4 << 10, 1 << 20] {
        let rows = std::thread::scope(|scope| {
            let counting = layouts.map(|layout| scope.spawn(move || costs(layout, bytes)));
            counting.map(|counted| counted.join().expect("it only counts"))
        });
        for (layout, (files, operations)) in layouts.iter().zip(rows) {
            println!("| {} KiB | {} | {files} | {operations} |", bytes >> 10, layout.unwrap_or("without Sheaf"));
        }
        assert_eq!(rows.map(|(files, _)| files), [64, 1, 1, 64]);
        let [without, node, _, files] = rows.map(|(_, operations)| operations);
        assert!(files > node && files < without + 64 * 20, "{files}");
    }
}
