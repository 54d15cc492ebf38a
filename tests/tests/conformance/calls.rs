//! The rarer calls, natively and under Sheaf: on names that are staged, in an aggregate alone, unmanaged or missing.

use std::fs;
use std::path::Path;

use sheaf_tests::scene::workspace;
use sheaf_tests::{Engine, Finished, Scene, process};

/// What no Sheaf is involved in, on both sides.
const UNMANAGED: &str = "
    mkdir -p ckpt/sub/deep/deeper ckpt/empty elsewhere
    echo unmanaged >ckpt/unmanaged
    ln -s unmanaged ckpt/ulink
    ln -s ../ckpt elsewhere/door";

/// What ends up in an aggregate.
const PUBLISHED: &str = "
    echo stub >ckpt/stub; echo another >ckpt/stub2; echo inner >ckpt/sub/inner; echo deep >ckpt/sub/deep/deeper/file
    ln -s stub ckpt/link; ln -s nothing ckpt/dangling; ln -s sub ckpt/linkdir
    cp /bin/echo ckpt/program; ln -s program ckpt/program-link; cp /bin/echo ckpt/sub/program
    printf '#!/bin/sh\\necho \"$0 called with $# arguments: $*\"\\n' >ckpt/script
    printf '#!ckpt/program -n  an argument\\n' >ckpt/chained
    echo 'echo shell \"$0\" \"$@\"' >ckpt/bare-script
    printf '#!\\n' >ckpt/broken-script
    printf '#!/bin/sh\\necho $#\\n' >ckpt/quiet-script
    chmod +x ckpt/quiet-script ckpt/script ckpt/chained ckpt/bare-script ckpt/broken-script
    cp ckpt/script ckpt/not-executable; chmod 644 ckpt/not-executable
    cp libthing.so ckpt; ln -s libthing.so ckpt/thing-link";

/// What is in the stage.
const STAGED: &str = "echo fresh >ckpt/fresh";

/// Compiles one of `tests/apps` with options of its own, in the scene's root.
fn compile(scene: &Scene, source: &str, output: &str, options: &[&str]) {
    let source = workspace().join("tests/apps").join(source);
    let mut gcc = scene.native_command("gcc");
    gcc.args(["-Wall", "-O1", "-o"]).arg(scene.root().join(output)).args(options).arg(source).arg("-ldl");
    process::run(&mut gcc).expect_success();
}

fn prepared() -> Scene {
    let scene = Scene::new(Engine::IoUring);
    fs::write(scene.root().join("thing.c"), "int answer(void) { return 42; }\n").expect("the scene is ours");
    for side in [scene.native_directory(), scene.captured_directory()] {
        let mut gcc = scene.native_command("gcc");
        gcc.args(["-shared", "-o"]).arg(side.join("libthing.so")).arg(scene.root().join("thing.c"));
        process::run(&mut gcc).expect_success();
        process::run(scene.native_command("sh").args(["-ec", UNMANAGED]).current_dir(side)).expect_success();
    }
    scene.native(&["sh", "-ec", PUBLISHED]).expect_success();
    scene.native(&["sh", "-ec", STAGED]).expect_success();
    scene.preloaded(&["sh", "-ec", PUBLISHED]).expect_success();
    scene.drain();
    scene.wipe_stage();
    scene.preloaded(&["sh", "-ec", STAGED]).expect_success();
    scene
}

/// The output with the side's own directory taken out.
fn answers(finished: &Finished, directory: &Path) -> String {
    finished.text().replace(&directory.display().to_string(), "@")
}

/// Fails at the first line that differs.
fn assert_same_answers(scene: &Scene, program: &str) {
    let program = scene.root().join(program);
    let native = process::run(&mut scene.native_command(&program)).expect_success();
    let captured = process::run(&mut scene.preloaded_command(&program)).expect_success();
    let (native, captured) =
        (answers(&native, &scene.native_directory()), answers(&captured, &scene.captured_directory()));
    let different = native.lines().zip(captured.lines()).filter(|(one, other)| one != other);
    let different: Vec<_> = different.map(|(one, other)| format!("native:   {one}\ncaptured: {other}")).collect();
    assert!(different.is_empty(), "{} answers differ:\n{}", different.len(), different.join("\n"));
    assert_eq!(native.lines().count(), captured.lines().count(), "one side ended early");
}

#[test]
fn rare_calls_answer_as_natively() {
    let scene = prepared();
    compile(&scene, "calls.c", "calls", &[]);
    assert_same_answers(&scene, "calls");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "from the aggregates");
}

#[test]
fn walks_visit_what_they_visit_natively() {
    let scene = prepared();
    compile(&scene, "walks.c", "walks", &[]);
    assert_same_answers(&scene, "walks");
}

#[test]
fn trees_are_walked_as_natively() {
    let scene = prepared();
    compile(&scene, "trees.c", "trees", &[]);
    assert_same_answers(&scene, "trees");
}

/// Those that compilers and headers write: for large files, for checked sizes, for versions before 2.33; and the
/// rarest.
#[test]
fn names_that_nobody_writes_answer_as_natively() {
    let scene = prepared();
    compile(&scene, "aliases.c", "aliases", &["-Wno-deprecated-declarations"]);
    assert_same_answers(&scene, "aliases");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "from the aggregates");
}

/// getdents64(2) and its relatives.
#[test]
fn descriptors_are_listed_as_natively() {
    let scene = prepared();
    compile(&scene, "listed.c", "listed", &[]);
    assert_same_answers(&scene, "listed");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

/// The loader binds the library's functions, which have no version, to whatever version is asked for.
#[test]
#[cfg(target_arch = "x86_64")]
fn oldest_versions_answer_as_natively() {
    let scene = prepared();
    compile(&scene, "older.c", "older", &[]);
    let mut tool = scene.native_command("nm");
    let symbols = process::run(tool.arg("-D").arg(scene.root().join("older"))).expect_success().text();
    for name in ["realpath", "glob", "glob64", "nftw", "nftw64", "posix_spawn", "posix_spawnp", "dlopen"] {
        assert!(symbols.contains(&format!("{name}@GLIBC_2.2.5")), "the linker took another {name}:\n{symbols}");
    }
    assert_same_answers(&scene, "older");
}

/// O_TMPFILE with linkat(2), in every way in which an open file can be named, and the restrictions of openat2(2).
#[test]
fn files_without_a_name_are_captured_when_they_get_one() {
    let scene = prepared();
    compile(&scene, "unnamed.c", "unnamed", &[]);
    assert_same_answers(&scene, "unnamed");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    let real = fs::read_dir(scene.checkpoints()).expect("the directory is real");
    let names: Vec<_> = real.map(|entry| entry.expect("the directory is ours").file_name()).collect();
    let escaped = |name: &&std::ffi::OsString| name.to_string_lossy().contains("named-");
    assert_eq!(names.iter().find(escaped), None, "among the real names");
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "from the aggregates");
}

/// The kernel calls such a file by a name that it never had, also when it is closed.
#[test]
fn a_file_that_gets_its_name_while_it_is_written_is_published_when_it_is_closed() {
    const PROGRAM: &str = "
import os, subprocess, sys
for name in ['before', 'moved']:
    fd = os.open('ckpt', os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b'early ')
    os.link(f'/proc/self/fd/{fd}', 'ckpt/' + name, src_dir_fd=0)
    if name == 'moved':
        os.rename('ckpt/moved', 'ckpt/after')
    os.write(fd, b'late')
    os.close(fd)
wait = dict(os.environ)
del wait['LD_PRELOAD']
subprocess.run([sys.argv[1], 'wait'], env=wait, check=True, stdout=subprocess.DEVNULL)
for name in ['before', 'after']:
    subprocess.run([sys.argv[1], 'cat', 'ckpt/.sheaf', os.path.abspath('ckpt/' + name)], env=wait, check=True)
";
    let scene = Scene::new(Engine::IoUring);
    let sheaf = sheaf_tests::scene::artefact("sheaf");
    let mut program = scene.preloaded_command("python3");
    let finished = process::run(program.args(["-c", PROGRAM]).arg(sheaf)).expect_success();
    assert_eq!(finished.text(), "early lateearly late");
    scene.drain();
}

/// Asks for handles; says the error number, or 0.
const HANDLES: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int count, char **names)
{
    struct { struct file_handle head; char bytes[MAX_HANDLE_SZ]; } handle;
    int mount;
    for (int i = 1; i < count; i++) {
        memset(&handle, 0, sizeof handle);
        handle.head.handle_bytes = MAX_HANDLE_SZ;
        errno = 0;
        int first = name_to_handle_at(AT_FDCWD, names[i], &handle.head, &mount, AT_SYMLINK_FOLLOW) ? errno : 0;
        handle.head.handle_bytes = MAX_HANDLE_SZ;
        int raw = syscall(SYS_name_to_handle_at, AT_FDCWD, names[i], &handle.head, &mount, 0) ? errno : 0;
        printf("%s %d %d\n", names[i], first, raw);
    }
    return 0;
}
"#;

/// A handle could be opened after the data has left the stage: so staged files have none, and everything else has its
/// own.
#[test]
fn a_staged_file_has_no_handle() {
    let scene = prepared();
    let (source, program) = (scene.root().join("handles.c"), scene.root().join("handles"));
    fs::write(&source, HANDLES).expect("the scene is ours");
    process::run(scene.native_command("gcc").arg("-o").arg(&program).arg(&source)).expect_success();
    let program = program.to_str().expect("scenes have plain names");
    let others = ["ckpt", "ckpt/sub", "ckpt/unmanaged", "ckpt/ulink", "ckpt/missing", "ckpt/dangling/x"];
    let command: Vec<_> = [program].into_iter().chain(others).collect();
    let native = scene.native(&command).expect_success().text();
    assert_eq!(scene.preloaded(&command).expect_success().text(), native);
    let staged = scene.preloaded(&[program, "ckpt/stub", "ckpt/fresh", "ckpt/sub/inner"]).expect_success().text();
    let refused = libc::EOPNOTSUPP;
    let expected = ["stub", "fresh", "sub/inner"].map(|name| format!("ckpt/{name} {refused} {refused}\n"));
    assert_eq!(staged, expected.concat());
}
