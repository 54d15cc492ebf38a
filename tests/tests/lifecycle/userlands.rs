//! One library for every cluster: loaded by other C libraries than this system's, and at work there.
//!
//! Releases 2.31 and 2.41 are Debian's own, whole. No mirror has 2.17 and 2.28 any more: for them every symbol that
//! came later is hidden from the C library of 2.31, so that neither the loader nor dlsym finds it. What languages'
//! packages bring was searched for either one whole (C library and loader), in vain: nearest are
//! `backend.ai-krunner-centos`, a Python of CentOS 7.6 without its C library, and `ziglang`, which has the lists of
//! symbols of every release, and no code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheaf_tests::scene::{artefact, workspace};
use sheaf_tests::{Engine, Scene, process};

use crate::{Escapes, compile, same_both_ways};

const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// Where the linker's share of the C library is.
const LINKED: &str = "usr/lib/x86_64-linux-gnu";

/// What a script does with checkpoints, with nothing but a shell and coreutils.
const WRITE: &str = r#"
set -e
cd ckpt
for i in 1 2 3; do seq $((i * 20000)) >field.$i; done
cp field.1 copy; mv field.2 moved; ln moved second-name; ln -s copy pointer
mkdir -p below/deeper; cp -p field.3 below/deeper/; chmod 600 copy; touch -d '2020-02-02 02:02:02 UTC' moved
echo appended >>copy; head -c 1000 copy >part; truncate -s 500 part; rm field.1
touch -d '2021-03-03 03:03:03 UTC' copy part
test ! -e field.1; stat -c '%n %s %a %h' copy moved part; basename "$(realpath -e pointer)"
"#;
const RESTART: &str = r#"
set -e
cd ckpt
sha256sum copy moved second-name pointer part below/deeper/field.3
stat -c '%n %s %a %Y' copy moved part
ls -1 . below/deeper
cat part >after-restart
"#;

fn release(name: &str) -> PathBuf {
    let tree = workspace().join("target/userlands").join(name);
    assert!(tree.join("programs/bash").exists(), "{} is missing: run scripts/fetch-userlands.sh", tree.display());
    tree
}

/// Writes and restarts in the shell of `programs`, which come with their loader and libraries down to the last child.
fn shell_and_tools(programs: &Path) {
    let scene = Scene::new(Engine::IoUring);
    let shell = programs.join("bash");
    let command = |mut command: Command, script: &str| {
        command.env("PATH", programs).args(["-c", script]);
        command
    };
    let mut native = command(scene.native_command(&shell), WRITE);
    let mut captured = command(scene.preloaded_command(&shell), WRITE);
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    let mut native = command(scene.native_command(&shell), RESTART);
    let mut captured = command(scene.preloaded_command(&shell), RESTART);
    let restarted = same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    assert!(restarted.text().contains("second-name"), "{}", restarted.describe());
}

#[test]
fn glibc_2_31() {
    shell_and_tools(&release("bullseye").join("programs"));
}

#[test]
fn glibc_2_41() {
    shell_and_tools(&release("trixie").join("programs"));
}

/// A program that is linked with an older C library's headers and start files, and runs with that library.
fn compiled_for(scene: &Scene, source: &str, libraries: &Path) -> PathBuf {
    let tree = release("bullseye");
    let (start, linked, present) = (tree.join(LINKED), tree.join("usr/include"), tree.join(LIBRARIES));
    let text = |path: PathBuf| path.to_str().expect("the build directory's path is ASCII").to_string();
    let flags = [
        "-nostdinc".to_string(),
        format!("-isystem{}", gcc_headers()),
        format!("-isystem{}", text(linked.join("x86_64-linux-gnu"))),
        format!("-isystem{}", text(linked)),
        "-nostdlib".to_string(),
        text(start.join("crt1.o")),
        text(start.join("crti.o")),
        text(present.join("libpthread.so.0")),
        text(present.join("libc.so.6")),
        text(start.join("libc_nonshared.a")),
        text(start.join("crtn.o")),
        format!("-Wl,--dynamic-linker={}", text(tree.join("lib64/ld-linux-x86-64.so.2"))),
        format!("-Wl,-z,now,--disable-new-dtags,-rpath,{}:{}", text(libraries.to_path_buf()), text(present)),
    ];
    compile(scene, source, "program", &flags.each_ref().map(String::as_str))
}

/// The compiler's own headers, stddef.h for example.
fn gcc_headers() -> String {
    let said = process::run(Command::new("gcc").arg("-print-file-name=include")).expect_success();
    said.text().trim().to_string()
}

/// Threads, streams, names and listings by a program that binds to the old names, `__xstat` for one.
fn compiled_program(libraries: impl Fn(&Scene) -> PathBuf) {
    let scene = Scene::new(Engine::IoUring);
    let program = compiled_for(&scene, "worker.c", &libraries(&scene));
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

#[test]
fn program_compiled_for_glibc_2_31() {
    compiled_program(|_| release("bullseye").join(LIBRARIES));
}

/// Of functions with several versions the newest is called: the older `realpath` refuses to allocate.
#[test]
fn newest_versions_of_glibc_2_31() {
    let scene = Scene::new(Engine::IoUring);
    let program = compiled_for(&scene, "versions.c", &release("bullseye").join(LIBRARIES));
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

/// A program that was compiled for it, started by this system's loader: what was compiled years ago and runs today.
#[test]
fn program_compiled_for_glibc_2_31_runs_here() {
    let scene = Scene::new(Engine::IoUring);
    let program = compiled_for(&scene, "worker.c", &release("bullseye").join(LIBRARIES));
    let mut patch = scene.native_command("patchelf");
    patch.args(["--set-interpreter", "/lib64/ld-linux-x86-64.so.2", "--remove-rpath"]).arg(&program);
    process::run(&mut patch).expect_success();
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

#[test]
fn symbols_of_glibc_2_28() {
    let scene = Scene::new(Engine::IoUring);
    shell_and_tools(&programs_with_hidden_symbols(&scene, (2, 28)));
    compiled_program(|scene| with_hidden_symbols(scene, (2, 28)));
}

/// Debian's own tools need newer symbols than these; compiled for it, a program does not.
#[test]
fn symbols_of_glibc_2_17() {
    compiled_program(|scene| with_hidden_symbols(scene, (2, 17)));
}

/// A program that needs a hidden symbol must not run: otherwise nothing was hidden.
#[test]
fn hidden_symbols_are_missing() {
    let scene = Scene::new(Engine::IoUring);
    let programs = programs_with_hidden_symbols(&scene, (2, 17));
    let finished = process::run(scene.native_command(programs.join("mv")).args(["a", "b"]));
    assert_eq!(finished.status.code(), Some(127), "{}", finished.describe());
}

/// Every symbol that the library asks for has a version, of 2.17 at most, and is in the C library of 2.31 under it.
#[test]
fn needs_no_symbol_newer_than_2_17() {
    let scene = Scene::new(Engine::IoUring);
    let offered = ["libc.so.6", "libdl.so.2", "ld-2.31.so"];
    let offered = offered.map(|name| dynamic_symbols(&scene, &release("bullseye").join(LIBRARIES).join(name)));
    let offered: Vec<_> = offered.into_iter().flatten().filter(|symbol| symbol.is_defined).collect();
    let needed = dynamic_symbols(&scene, &artefact("libsheaf.so"));
    let needed: Vec<_> = needed.into_iter().filter(|symbol| !symbol.is_defined && !symbol.is_weak).collect();
    assert!(!needed.is_empty());
    for symbol in needed {
        assert!(symbol.version.is_some_and(|version| version <= (2, 17)), "{}", symbol.name);
        let is_offered = offered.iter().any(|other| other.name == symbol.name && other.version == symbol.version);
        assert!(is_offered, "{} {:?}", symbol.name, symbol.version);
    }
}

/// One line of a dynamic symbol table.
struct Symbol {
    index: usize,
    name: String,
    version: Option<(u32, u32)>,
    is_defined: bool,
    is_weak: bool,
}

/// What `readelf` reads: index, value, size, type, binding, visibility, section, name and version.
fn dynamic_symbols(scene: &Scene, library: &Path) -> Vec<Symbol> {
    let mut command = scene.native_command("readelf");
    let said = process::run(command.args(["-W", "--dyn-syms"]).arg(library)).expect_success();
    said.text().lines().filter_map(symbol).collect()
}

fn symbol(line: &str) -> Option<Symbol> {
    let columns: Vec<_> = line.split_whitespace().collect();
    let index = columns.first()?.strip_suffix(':')?.parse().ok()?;
    let (name, version) = columns.get(7)?.split_once('@').unwrap_or((columns[7], ""));
    let version = version.trim_start_matches('@').strip_prefix("GLIBC_").and_then(|version| {
        let mut numbers = version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    Some(Symbol {
        index,
        name: name.to_string(),
        version,
        is_defined: columns[6] != "UND",
        is_weak: columns[4] == "WEAK",
    })
}

/// What the scripts of this module use, settled with a C library whose newer symbols are hidden.
fn programs_with_hidden_symbols(scene: &Scene, newest: (u32, u32)) -> PathBuf {
    const USED: &str = "bash basename cat chmod cp head ln ls mkdir mv realpath rm seq sha256sum stat touch truncate";
    let (tree, made) = (release("bullseye"), scene.root().join("programs"));
    let libraries = [with_hidden_symbols(scene, newest), tree.join(LIBRARIES), tree.join(LINKED)];
    let libraries = libraries.map(|directory| directory.display().to_string()).join(":");
    fs::create_dir_all(&made).expect("the scene is ours");
    for name in USED.split(' ') {
        fs::copy(tree.join("programs").join(name), made.join(name)).expect("the release was unpacked");
        let mut patch = scene.native_command("patchelf");
        patch.args(["--force-rpath", "--set-rpath", &libraries]).arg(made.join(name));
        process::run(&mut patch).expect_success();
    }
    made
}

/// Copies of the C library's files of 2.31 whose symbols newer than `newest` are as if undefined.
fn with_hidden_symbols(scene: &Scene, newest: (u32, u32)) -> PathBuf {
    let made = scene.root().join("libraries");
    fs::create_dir_all(&made).expect("the scene is ours");
    for name in ["libc.so.6", "libpthread.so.0"] {
        let source = release("bullseye").join(LIBRARIES).join(name);
        let mut bytes = fs::read(&source).expect("the release was unpacked");
        let table = symbol_table(scene, &source);
        let newer = |symbol: &Symbol| symbol.is_defined && symbol.version.is_some_and(|version| version > newest);
        for symbol in dynamic_symbols(scene, &source).iter().filter(|symbol| newer(symbol)) {
            // An entry is 24 bytes: name 4, kind 1, visibility 1, section 2, value 8, size 8.
            let entry = table + 24 * symbol.index;
            bytes[entry + 6..entry + 16].fill(0);
        }
        fs::write(made.join(name), bytes).expect("the scene is ours");
    }
    made
}

/// Where a library's dynamic symbols are in its file.
fn symbol_table(scene: &Scene, library: &Path) -> usize {
    let mut command = scene.native_command("readelf");
    let said = process::run(command.args(["-W", "-S"]).arg(library)).expect_success().text();
    let line = said.lines().find_map(|line| line.split_once(" DYNSYM ")).expect("a shared library has symbols");
    let offset = line.1.split_whitespace().nth(1).expect("address and offset follow");
    usize::from_str_radix(offset, 16).expect("offsets are hexadecimal")
}
