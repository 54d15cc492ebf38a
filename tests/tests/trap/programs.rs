//! Static, Go and raw programs: the same answers, names and bytes; nothing of it on the parallel file system.

use std::path::PathBuf;
use std::process::Command;
use std::{fs, str};

use sheaf_tests::scene::{helper, workspace};
use sheaf_tests::{Engine, Finished, Scene, process};

/// Builds one of `tests/apps` into the scene's root.
fn build(scene: &Scene, builder: &str, arguments: &[&str], source: &str) -> PathBuf {
    let program = scene.root().join("program");
    let cache = workspace().join("target/go-cache");
    let mut command = scene.native_command(builder);
    command.args(arguments).arg("-o").arg(&program).arg(workspace().join("tests/apps").join(source));
    command.env("GOCACHE", cache).env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOPROXY", "off");
    process::run(&mut command).expect_success();
    program
}

fn build_c(scene: &Scene) -> PathBuf {
    build(scene, "gcc", &["-static", "-O1", "-w"], "trap_state.c")
}

/// Both ways, the same; yields what the trapped program left.
fn same_both_ways(scene: &Scene, native: &mut Command, trapped: &mut Command) -> Finished {
    let native = process::run(native);
    let trapped = process::run(trapped);
    assert_eq!(trapped.text(), native.text(), "{}", trapped.describe());
    assert_eq!(trapped.status, native.status, "{}", trapped.describe());
    assert_eq!(str::from_utf8(&trapped.stderr), str::from_utf8(&native.stderr));
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "what a preloaded program sees");
    trapped
}

/// A first and a second phase, the second from the aggregates alone.
fn whole_way(scene: &Scene, program: &PathBuf, phases: [&[&str]; 2]) {
    for phase in phases {
        same_both_ways(scene, scene.native_command(program).args(phase), scene.trapped_command(program).args(phase));
        scene.drain();
        scene.assert_no_captured_files_on_pfs();
        scene.verify();
        scene.wipe_stage();
    }
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "what the aggregates yield");
    scene.drain();
}

#[test]
fn static_c() {
    let scene = Scene::new(Engine::IoUring);
    let program = build_c(&scene);
    whole_way(&scene, &program, [&["write"], &["read"]]);
}

#[test]
fn static_rust() {
    let scene = Scene::new(Engine::IoUring);
    let arguments = ["--edition", "2024", "-C", "target-feature=+crt-static"];
    let program = build(&scene, "rustc", &arguments, "trap_state.rs");
    whole_way(&scene, &program, [&["write"], &["read"]]);
}

#[test]
fn go() {
    let scene = Scene::new(Engine::Pwrite);
    let program = build(&scene, "go", &["build"], "trap_state.go");
    whole_way(&scene, &program, [&["write"], &["read"]]);
}

/// Python is served by the preloaded library; its module renames past the C library.
#[test]
fn a_module_that_calls_the_kernel_itself() {
    let scene = Scene::new(Engine::IoUring);
    let script = workspace().join("tests/apps/tensors.py");
    for phase in ["write", "restart"] {
        let mut native = scene.native_command("python3");
        let mut trapped = scene.sheaf_command();
        trapped.args(["run", "--trap=always", "--", "python3"]).arg(&script).arg(phase);
        let finished = same_both_ways(&scene, native.arg(&script).arg(phase), &mut trapped).expect_success();
        let left = finished.text();
        assert!(left.lines().last().is_some_and(|names| names.contains("model.safetensors")), "{left}");
        assert!(!scene.captured_snapshot().contains(".tmp"), "a file has not got its name");
        scene.drain();
        scene.assert_no_captured_files_on_pfs();
        scene.verify();
        scene.wipe_stage();
    }
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "what the aggregates yield");
    scene.drain();
}

const BUSYBOX_WRITE: &str = "
    set -e
    bb() { /bin/busybox \"$@\"; }
    bb mkdir -p ckpt/run/deep
    bb seq 30000 >ckpt/run/state-1
    bb cp ckpt/run/state-1 ckpt/run/state-2
    bb mv ckpt/run/state-2 ckpt/run/deep/renamed
    bb cp -r ckpt/run ckpt/copied
    bb tar cf ckpt/archive.tar -C ckpt run
    bb mkdir ckpt/unpacked
    bb tar xf ckpt/archive.tar -C ckpt/unpacked
    bb rm ckpt/archive.tar
    bb rm -r ckpt/copied
    bb ln -s run/state-1 ckpt/latest
    bb chmod 600 ckpt/run/state-1
    bb touch -d '2020-01-02 03:04:05' ckpt/run/deep/renamed
    echo more >>ckpt/run/deep/renamed
    bb cat ckpt/latest | bb md5sum
    bb test -f ckpt/run/state-2 || echo gone
    bb find ckpt | bb grep -v sheaf | bb sort";

const BUSYBOX_READ: &str = "
    bb() { /bin/busybox \"$@\"; }
    bb ls ckpt ckpt/run ckpt/unpacked/run/deep
    bb cat ckpt/latest ckpt/run/deep/renamed | bb md5sum
    bb rm -r ckpt/unpacked
    bb mv ckpt/run ckpt/walked
    bb find ckpt | bb sort
    exit 3";

#[test]
fn busybox() {
    let scene = Scene::new(Engine::IoUring);
    whole_way(&scene, &PathBuf::from("/bin/busybox"), [&["sh", "-c", BUSYBOX_WRITE], &["sh", "-c", BUSYBOX_READ]]);
}

/// Programs into which the library is preloaded are served by it alone, those beside them by the trap: on the same
/// names, with older files of the parallel file system under some of them.
#[test]
fn preloaded_and_trapped_programs_together() {
    const SCRIPT: &str = "
        /bin/busybox cp ckpt/old-1 ckpt/copy
        bash -c 'echo by bash >ckpt/old-1; seq 1000 >ckpt/new; rm ckpt/old-3'
        echo by busybox >ckpt/old-2
        /bin/busybox cat ckpt/old-1 ckpt/old-2 ckpt/new | /bin/busybox md5sum
        cat ckpt/old-1 ckpt/old-2 ckpt/new ckpt/copy | md5sum
        mv ckpt/new ckpt/newer
        bash -c 'cat ckpt/old-2; mkdir ckpt/d; echo x >ckpt/d/x; rm -r ckpt/d; echo y >ckpt/old-1'
        /bin/busybox cat ckpt/old-1; /bin/busybox rm ckpt/old-2; ls ckpt; /bin/busybox ls ckpt";
    let scene = Scene::new(Engine::IoUring);
    for side in [scene.native_directory(), scene.captured_directory()] {
        for name in ["old-1", "old-2", "old-3"] {
            fs::write(side.join("ckpt").join(name), "from before").expect("the scene is ours");
        }
    }
    let arguments = ["sh", "-c", SCRIPT];
    same_both_ways(
        &scene,
        scene.native_command("/bin/busybox").args(arguments),
        scene.trapped_command("/bin/busybox").args(arguments),
    );
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
}

/// Random operations of a dynamic program without the library: every call of it goes through the trap. And with the
/// library: none may be made twice.
#[test]
fn random_operations() {
    for (round, removed) in ["LD_PRELOAD", "NOTHING"].into_iter().cycle().take(6).enumerate() {
        let scene = Scene::new(if round % 2 == 0 { Engine::IoUring } else { Engine::Pwrite });
        let seed: u64 = rand::random();
        println!("seed {seed}, without {removed}");
        for step in 0..2u64 {
            let words = [seed.wrapping_add(step).to_string(), "300".to_string()];
            let mut trapped = scene.sheaf_command();
            trapped.args(["run", "--trap=always", "--", "env", "-u", removed]).arg(helper("operations")).args(&words);
            same_both_ways(&scene, scene.native_command(helper("operations")).args(&words), &mut trapped);
            scene.drain();
            scene.assert_no_captured_files_on_pfs();
            scene.verify();
            scene.wipe_stage();
        }
    }
}

/// What moves data is never announced: 4,000 writes cost the supervisor nothing.
#[test]
fn data_calls_stay_native() {
    let scene = Scene::new(Engine::IoUring);
    let program = build_c(&scene);
    let answers = |writes: &str| {
        let log = scene.root().join("trace");
        let mut command = scene.sheaf_command();
        let sheaf = command.get_program().to_owned();
        let mut strace = scene.native_command("strace");
        strace.current_dir(scene.captured_directory());
        strace.args(["-f", "-qq", "-X", "raw", "-e", "trace=ioctl,write", "-o"]).arg(&log);
        for (name, value) in command.get_envs().filter(|(name, _)| name.to_string_lossy().starts_with("SHEAF_")) {
            strace.env(name, value.expect("nothing is removed from the environment that was not there"));
        }
        command.args(["run", "--trap", "--"]).arg(&program).args(["many", writes]);
        process::run(strace.arg(sheaf).args(command.get_args())).expect_success();
        let text = fs::read_to_string(&log).expect("strace wrote its log");
        // Numbers 1 and 3 of the listener's requests: an answer, and an answer with a descriptor.
        let answered = |line: &&str| ["0xc0182101", "0x40182103"].iter().any(|request| line.contains(request));
        let length = fs::read_to_string(&log).expect("strace wrote its log").matches("write(").count();
        (text.lines().filter(answered).count(), length)
    };
    let ((few, few_writes), (many, many_writes)) = (answers("1"), answers("4000"));
    assert!(many_writes > few_writes + 3000, "{few_writes} {many_writes}");
    // The first run also makes the stage, so the two differ by a few answers, and not by thousands.
    assert!(few > 0 && many.abs_diff(few) < 100, "{few} answers for one write, {many} for 4,000");
}
