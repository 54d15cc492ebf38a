//! Other libraries in the process: that start earlier and end later, that allocate, that are preloaded as well, that
//! are loaded while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene, process};

use crate::{Escapes, compile, compile_with, preload, same_both_ways};

const SHARED: [&str; 2] = ["-shared", "-fPIC"];
/// Where Debian puts shared libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn debian(name: &str) -> PathBuf {
    let path = Path::new(LIBRARIES).join(name);
    assert!(path.exists(), "{} is missing: run scripts/install-test-dependencies.sh", path.display());
    path
}

/// A program under another preloaded library, with Sheaf behind and before it.
fn both_orders(source: &str, flags: &[&str], other: impl Fn(&Scene) -> PathBuf, change: impl Fn(&mut Command)) {
    for sheaf_first in [false, true] {
        let scene = Scene::new(Engine::IoUring);
        let (program, other) = (compile(&scene, source, "program", flags), other(&scene));
        let sheaf = artefact("libsheaf.so");
        let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
        preload(&mut native, &[&other]);
        preload(&mut captured, &if sheaf_first { [sheaf.as_path(), &other] } else { [&other, &sheaf] });
        change(&mut native);
        change(&mut captured);
        same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    }
}

#[test]
fn constructors_before_and_destructors_after() {
    let scene = Scene::new(Engine::IoUring);
    let early = compile(&scene, "early.c", "libearly.so", &SHARED);
    let program = compile(&scene, "worker.c", "program", &["-DWITH_EARLY", early.to_str().expect("an ASCII path")]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

#[test]
fn static_stream_of_the_cpp_library() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile_with(scene.native_command("g++"), &scene, "unit.cc", "program", &[]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

fn load_a_plugin(way: &str, escapes: Escapes) {
    let scene = Scene::new(Engine::IoUring);
    compile(&scene, "plugin.c", "plugin.so", &SHARED);
    let program = compile(&scene, "host.c", "program", &["-ldl"]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, native.arg(way), captured.arg(way), escapes);
}

#[test]
fn plugin() {
    load_a_plugin("local", Escapes::Nothing);
}

/// Such a plugin binds to the C library alone. What it writes is where it would be without Sheaf.
#[test]
fn plugin_bound_deeply_escapes() {
    load_a_plugin("deep", Escapes::Only("from the plugin"));
}

#[test]
fn jemalloc() {
    both_orders("worker.c", &[], |_| debian("libjemalloc.so.2"), |_| ());
}

#[test]
fn tcmalloc() {
    both_orders("worker.c", &[], |_| debian("libtcmalloc_minimal.so.4"), |_| ());
}

#[test]
fn allocator_that_opens_files_under_its_lock() {
    both_orders("worker.c", &[], |scene| compile(scene, "allocator.c", "allocator.so", &SHARED), |_| ());
}

#[test]
fn allocator_that_opens_files_linked_to_the_program() {
    let scene = Scene::new(Engine::IoUring);
    let allocator = compile(&scene, "allocator.c", "liballocator.so", &SHARED);
    let program = compile(&scene, "worker.c", "program", &[allocator.to_str().expect("an ASCII path")]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

/// What the observer counts is what the program does, if it stands before Sheaf; it must not be disturbed behind it.
#[test]
fn another_observer() {
    both_orders("worker.c", &[], |scene| compile(scene, "observer.c", "observer.so", &SHARED), |_| ());
}

#[test]
fn an_observer_before_sheaf_sees_what_it_sees_natively() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, "worker.c", "program", &[]);
    let observer = compile(&scene, "observer.c", "observer.so", &SHARED);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    preload(&mut native, &[&observer]);
    preload(&mut captured, &[&observer, &artefact("libsheaf.so")]);
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    let seen = |side: PathBuf| fs::read_to_string(side.join("observed")).expect("the observer wrote what it saw");
    assert_eq!(seen(scene.captured_directory()), seen(scene.native_directory()));
}

/// A library behind Sheaf is what Sheaf calls, however its symbols are to be found.
#[test]
fn an_observer_behind_sheaf_is_passed_on_to() {
    for flags in [&["-Wl,--hash-style=gnu"][..], &["-Wl,--hash-style=sysv"], &["-DCHOSEN_BY_CODE"]] {
        let scene = Scene::new(Engine::IoUring);
        let observer = compile(&scene, "observer.c", "observer.so", &[&SHARED, flags].concat());
        let mut command = scene.preloaded_command("cat");
        preload(&mut command, &[&artefact("libsheaf.so"), &observer]);
        process::run(command.arg("/etc/passwd")).expect_success();
        let observed = fs::read_to_string(scene.captured_directory().join("observed"));
        let observed =
            observed.unwrap_or_else(|error| panic!("nothing was passed on to the observer: {flags:?}: {error}"));
        assert!(observed.starts_with("1 opened, "), "{flags:?}: {observed}");
    }
}

#[test]
fn faketime() {
    let set = |command: &mut Command| {
        command.env("FAKETIME", "2001-02-03 04:05:06");
    };
    both_orders("worker.c", &[], |_| debian("faketime/libfaketime.so.1"), set);
    both_orders("worker.c", &[], |_| debian("faketime/libfaketimeMT.so.1"), set);
}

/// fakeroot's own library is first, or Sheaf's; its helper process must end in both cases.
#[test]
fn fakeroot() {
    let script = "cp /etc/passwd ckpt/one && chown 12:34 ckpt/one && chmod 4755 ckpt/one && mv ckpt/one ckpt/two \
                  && stat -c '%u %g %a %s' ckpt/two && id -u";
    for sheaf_first in [false, true] {
        let scene = Scene::new(Engine::IoUring);
        let sheaf = artefact("libsheaf.so");
        let (mut native, mut captured) = (scene.native_command("fakeroot"), scene.preloaded_command("fakeroot"));
        native.args(["sh", "-c", script]);
        if sheaf_first {
            let line = format!("LD_PRELOAD={}:$LD_PRELOAD exec sh -c \"$1\"", sheaf.display());
            captured.env_remove("LD_PRELOAD").args(["sh", "-c", &line, "sh", script]);
        } else {
            captured.args(["sh", "-c", script]);
        }
        same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
    }
}

/// The program `sheaf` is found beside the library, wherever links lead.
#[test]
fn preloaded_through_a_link() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, "worker.c", "program", &[]);
    let link = scene.root().join("alias");
    std::os::unix::fs::symlink(artefact("libsheaf.so").parent().expect("it lies in a directory"), &link)
        .expect("the scene is ours");
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    preload(&mut captured, &[&link.join("libsheaf.so")]);
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

/// The loader says so and goes on without a library that is not there: nothing may then be half captured.
#[test]
fn a_missing_library_fails_open() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, "worker.c", "program", &[]);
    let mut captured = scene.preloaded_command(&program);
    preload(&mut captured, &[&scene.root().join("libsheaf.so")]);
    let (native, captured) = (process::run(&mut scene.native_command(&program)), process::run(&mut captured));
    assert_eq!((captured.status, captured.text()), (native.status, native.text()));
    assert!(scene.flushers().is_empty() && scene.store_aggregates().is_empty());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}
