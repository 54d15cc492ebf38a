//! The catalog: a store is read without opening its aggregates, and is then what it is without.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sheaf_tests::{Engine, Scene, process};

use super::merge::{listing, on_node};

/// The catalogs of a scene's store.
pub(super) fn catalogs(scene: &Scene) -> Vec<PathBuf> {
    let entries = fs::read_dir(scene.store()).expect("the store is there");
    let paths = entries.map(|entry| entry.expect("the store is ours").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "catalog")).collect()
}

fn catalog(scene: &Scene) {
    process::run(scene.sheaf_command().arg("catalog").arg(scene.store())).expect_success();
}

/// How many aggregates `sheaf ls` opens.
fn opened(scene: &Scene) -> usize {
    let log = scene.root().join("opened");
    let mut command = scene.sheaf_command();
    command.arg("ls").arg(scene.store());
    let log_option = log.to_str().expect("scenes have plain names");
    process::run(&mut scene.traced(&["-f", "-o", log_option, "-e", "trace=openat"], &command)).expect_success();
    let text = fs::read_to_string(log).expect("strace wrote it");
    text.lines().filter(|line| line.contains(".tar\"")).count()
}

fn damage_first_block(aggregate: &Path) {
    let modified = fs::metadata(aggregate).and_then(|metadata| metadata.modified()).expect("it is there");
    let file = File::options().write(true).open(aggregate).expect("it is ours");
    file.write_all_at(b"x", 600).expect("there is room");
    file.set_modified(modified).expect("it is ours");
}

#[test]
fn shows_what_the_aggregates_do() {
    let scene = Scene::new(Engine::IoUring);
    on_node(&scene, "one", "mkdir ckpt/d && seq 20000 >ckpt/d/a && echo a >ckpt/latest && ln -s d/a ckpt/l");
    on_node(&scene, "two", "seq 30000 >ckpt/b && mv ckpt/d ckpt/e && echo b >ckpt/latest");
    let expected = listing(&scene, &scene.store());
    assert_eq!(opened(&scene), 2);
    catalog(&scene);
    assert_eq!((catalogs(&scene).len(), opened(&scene)), (1, 0));
    assert_eq!(listing(&scene, &scene.store()), expected);
    // What comes later is read beside it, and is in the next one.
    on_node(&scene, "three", "mv ckpt/b ckpt/e/b && seq 10 >>ckpt/e/a");
    let expected = listing(&scene, &scene.store());
    assert_eq!(opened(&scene), 1);
    catalog(&scene);
    assert_eq!((catalogs(&scene).len(), opened(&scene)), (1, 0));
    assert_eq!(listing(&scene, &scene.store()), expected);
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

/// Names come from the catalog, data never does: what is damaged is not handed out, and `sheaf verify` looks for
/// itself.
#[test]
fn never_stands_for_an_aggregate() {
    let scene = Scene::new(Engine::Pwrite);
    on_node(&scene, "one", "seq 20000 >ckpt/a");
    catalog(&scene);
    let aggregate = scene.store_aggregates().remove(0);
    damage_first_block(&aggregate);
    let verified = process::run(scene.sheaf_command().arg("verify").arg(scene.store()));
    assert_eq!(verified.status.code(), Some(1), "{}", verified.describe());
    // Another aggregate under the name is that one.
    fs::remove_file(aggregate).expect("the store is ours");
    scene.wipe_stage();
    scene
        .preloaded(&["unshare", "--uts", "bash", "-c", "hostname one; test ! -e ckpt/a && seq 5 >ckpt/c"])
        .expect_success();
    scene.drain();
    scene.wipe_stage();
    let restarted = scene.preloaded(&["bash", "-c", "test ! -e ckpt/a && cat ckpt/c"]).expect_success();
    assert_eq!(restarted.text(), "1\n2\n3\n4\n5\n");
}
