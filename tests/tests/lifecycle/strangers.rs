//! Programs of another kind: another C library, 32 bits, set-uid. Those that cannot load the library come to no harm.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use sheaf_tests::{Engine, Finished, Scene, process};

use crate::{Escapes, compile, compile_with, same_both_ways};

/// Everything that the program wrote is where it would be without Sheaf, and nothing of Sheaf was started.
fn assert_untouched(scene: &Scene, native: &Finished, captured: &Finished) {
    assert_eq!(captured.status, native.status, "{}", captured.describe());
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
    assert!(scene.flushers().is_empty() && scene.store_aggregates().is_empty());
    let real = sheaf_tests::snapshot::take(&scene.checkpoints()).expect("the scene is ours");
    assert_eq!(real, scene.native_snapshot());
}

/// Nothing that the library needs of glibc is missing in musl: such programs are captured like others.
#[test]
fn dynamic_musl_program() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile_with(scene.native_command("musl-gcc"), &scene, "worker.c", "program", &[]);
    let (mut native, mut captured) = (scene.native_command(&program), scene.preloaded_command(&program));
    same_both_ways(&scene, &mut native, &mut captured, Escapes::Nothing);
}

#[test]
fn static_musl_program() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile_with(scene.native_command("musl-gcc"), &scene, "small.c", "program", &["-static"]);
    let native = process::run(&mut scene.native_command(&program)).expect_success();
    let captured = process::run(&mut scene.preloaded_command(&program));
    assert_untouched(&scene, &native, &captured);
}

/// Headers of the 64-bit system serve: only the package of the whole multilib compiler would bring its own.
const FLAGS_32_BITS: [&str; 3] = ["-m32", "-isystem", "/usr/include/x86_64-linux-gnu"];

#[test]
fn program_of_32_bits() {
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, "small.c", "program", &FLAGS_32_BITS);
    let native = process::run(&mut scene.native_command(&program)).expect_success();
    let captured = process::run(&mut scene.preloaded_command(&program));
    assert_untouched(&scene, &native, &captured);
}

/// The parent is captured, and so is what comes after its 32-bit child.
#[test]
fn child_of_32_bits() {
    let scene = Scene::new(Engine::IoUring);
    compile(&scene, "small.c", "program", &FLAGS_32_BITS);
    let script = "echo before >ckpt/before; ../program; cat ckpt/before >ckpt/after; cat ckpt/small";
    let (mut native, mut captured) = (scene.native_command("bash"), scene.preloaded_command("bash"));
    same_both_ways(&scene, native.args(["-c", script]), captured.args(["-c", script]), Escapes::Only("small"));
}

/// The loader drops preloaded libraries from programs whose rights differ from their caller's. Making one takes root.
#[test]
fn set_uid_program() {
    const NOBODY: u32 = 65534;
    let scene = Scene::new(Engine::IoUring);
    let program = compile(&scene, "small.c", "program", &[]);
    chown(&program, Some(NOBODY), None).expect("only root can make a program of another user's");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("the scene is ours");
    for side in [scene.native_directory(), scene.captured_directory()] {
        fs::set_permissions(side.join("ckpt"), fs::Permissions::from_mode(0o777)).expect("the scene is ours");
    }
    let native = process::run(&mut scene.native_command(&program)).expect_success();
    let captured = process::run(&mut scene.preloaded_command(&program));
    assert_untouched(&scene, &native, &captured);
}
