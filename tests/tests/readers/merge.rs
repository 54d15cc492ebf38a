//! `sheaf merge`: many aggregates as one that holds the same, for every reader, whatever interrupts the merging.

use std::fs;
use std::path::{Path, PathBuf};

use sheaf_tests::{Engine, Finished, Scene, process};

use super::catalog::catalogs;
use super::{assert_exact, input};

/// Where the result goes.
fn output(scene: &Scene) -> PathBuf {
    scene.root().join("merged.tar")
}

fn merge(scene: &Scene) -> Finished {
    process::run(scene.sheaf_command().arg("merge").arg(scene.store()).arg("--output").arg(output(scene)))
}

/// Everything that a store or an aggregate shows, with attributes and times.
pub(super) fn listing(scene: &Scene, source: &Path) -> String {
    process::run(scene.sheaf_command().args(["ls", "--json"]).arg(source)).expect_success().text()
}

/// A program on a node of this name, natively and with Sheaf.
pub(super) fn on_node(scene: &Scene, node: &str, script: &str) {
    scene.native(&["bash", "-c", script]).expect_success();
    let named = format!("hostname {node} && {script}");
    scene.preloaded(&["unshare", "--uts", "bash", "-c", &named]).expect_success();
    scene.drain();
}

/// Wipes the stage, and leaves only the merged aggregate in the store: what programs see then must be what the native
/// side holds.
fn assert_restarts_from_it(scene: &Scene) {
    scene.wipe_stage();
    fs::remove_dir_all(scene.store()).expect("the store is ours");
    fs::create_dir(scene.store()).expect("the directory is ours");
    fs::copy(output(scene), scene.store().join("merged.tar")).expect("there is room");
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}

#[test]
fn of_64_nodes() {
    let scene = Scene::new(Engine::IoUring);
    for node in 0..64 {
        let script = format!(
            "mkdir -p ckpt/all && seq {node} 5000 >ckpt/all/rank.{node} && head -c 10000 /dev/zero >ckpt/small.{node} \
             && echo {node} >ckpt/latest.tmp && mv ckpt/latest.tmp ckpt/latest"
        );
        on_node(&scene, &format!("node{node}"), &script);
    }
    assert_eq!(scene.store_aggregates().len(), 64);
    merge(&scene).expect_success();
    assert_eq!(listing(&scene, &output(&scene)), listing(&scene, &scene.store()));
    assert_exact(&scene, &output(&scene));
    // Who comes to so many aggregates makes a catalog of them.
    on_node(&scene, "node64", "cat ckpt/all/rank.0 ckpt/latest >ckpt/last");
    assert_eq!(catalogs(&scene).len(), 1);
    fs::remove_file(output(&scene)).expect("it was just made");
    merge(&scene).expect_success();
    assert_restarts_from_it(&scene);
}

#[test]
fn of_files_of_every_kind() {
    let scene = Scene::new(Engine::Pwrite);
    let script = input("variety.py");
    scene.native(&["python3", &script]).expect_success();
    scene.preloaded(&["python3", &script]).expect_success();
    scene.drain();
    on_node(
        &scene,
        "other",
        "mkdir -p ckpt/x/y && seq 100000 >ckpt/x/y/a && ln ckpt/x/y/a ckpt/x/b && ln -s y ckpt/x/l",
    );
    merge(&scene).expect_success();
    assert_eq!(listing(&scene, &output(&scene)), listing(&scene, &scene.store()));
    assert_exact(&scene, &output(&scene));
    assert_restarts_from_it(&scene);
}

/// Killed before each of its calls that make something durable or visible, it goes on with what it has and comes to the
/// same.
#[test]
fn that_is_killed_at_every_step() {
    let scene = Scene::new(Engine::IoUring);
    // Each of the large ones, mostly holes, fills a segment.
    on_node(
        &scene,
        "one",
        "seq 9000 >ckpt/a; for i in 1 2 3; do truncate -s 300M ckpt/h$i; seq $i 50000 >>ckpt/h$i; done; ln ckpt/a ckpt/b",
    );
    on_node(&scene, "two", "seq 70000 >ckpt/c; mkdir ckpt/d; mv ckpt/b ckpt/d/b");
    let expected = listing(&scene, &scene.store());
    let part = output(&scene).with_extension("tar.part");
    let calls = "fdatasync,fsync,renameat2,ftruncate";
    for step in 1.. {
        let mut command = scene.sheaf_command();
        command.arg("merge").arg(scene.store()).arg("--output").arg(output(&scene));
        let inject = format!("inject={calls}:signal=KILL:when={step}");
        let options = ["-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject];
        let finished = process::run(&mut scene.traced(&options, &command));
        let is_done = finished.status.success();
        if !is_done {
            assert!(output(&scene).exists() != part.exists(), "one or the other, before step {step}");
            if part.exists() {
                merge(&scene).expect_success();
            }
        }
        assert_eq!(listing(&scene, &output(&scene)), expected, "killed before step {step}");
        scene.sheaf(&["verify", output(&scene).to_str().expect("plain")]).expect_success();
        assert!(!part.exists());
        if is_done {
            assert!(step > 10, "only {step} steps");
            break;
        }
        fs::remove_file(output(&scene)).expect("the result is ours");
    }
    assert_restarts_from_it(&scene);
}

#[test]
fn that_is_refused() {
    let scene = Scene::new(Engine::IoUring);
    on_node(&scene, "one", "seq 20000 >ckpt/a; seq 500 >ckpt/b");
    let into = |path: &Path| {
        process::run(scene.sheaf_command().arg("merge").arg(scene.store()).arg("--output").arg(path)).status.code()
    };
    fs::write(output(&scene), "mine").expect("the directory is ours");
    assert_eq!(into(&output(&scene)), Some(2));
    assert_eq!(fs::read(output(&scene)).expect("it is still there"), b"mine");
    fs::remove_file(output(&scene)).expect("it is ours");
    assert_eq!(into(&scene.store().join("merged.tar")), Some(2), "it would be one of the store's own");
    assert_eq!(into(&scene.root().join("none/merged.tar")), Some(2));

    let aggregate = scene.the_aggregate();
    let intact = fs::read(&aggregate).expect("the store is readable");
    let is_in_a = |window: &[u8]| window == b"\n19998\n19999\n";
    let place = intact.windows(13).position(is_in_a).expect("its bytes are there as they are");
    let mut damaged = intact.clone();
    damaged[place] ^= 1;
    fs::write(&aggregate, damaged).expect("the store is ours");
    assert_eq!(into(&output(&scene)), Some(2), "damaged data");
    assert!(!output(&scene).exists());
    fs::write(&aggregate, &intact).expect("the store is ours");

    // What has been begun of another state of the store, or is no aggregate, is of no use.
    on_node(&scene, "two", "rm ckpt/a; seq 7 >ckpt/b");
    merge(&scene).expect_success();
    assert_restarts_from_it(&scene);
    fs::remove_file(output(&scene)).expect("it is ours");
    fs::write(output(&scene).with_extension("tar.part"), "nothing").expect("the directory is ours");
    merge(&scene).expect_success();
    assert_eq!(listing(&scene, &output(&scene)), listing(&scene, &scene.store()));
}
