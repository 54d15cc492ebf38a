//! `sheaf prune`: room that no flusher frees any more, and nothing else, goes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sheaf_tests::{Engine, Finished, Scene, process};

fn prune(scene: &Scene, options: &[&str]) -> Finished {
    process::run(scene.sheaf_command().arg("prune").args(options).arg(scene.store()))
}

/// The aggregates with their sizes.
fn listing(scene: &Scene) -> Vec<(PathBuf, u64)> {
    let size = |path: PathBuf| (path.clone(), fs::metadata(path).expect("the store is readable").len());
    scene.store_aggregates().into_iter().map(size).collect()
}

fn both(scene: &Scene, script: &str) {
    scene.native(&["bash", "-c", script]).expect_success();
    scene.preloaded(&["bash", "-c", script]).expect_success();
    scene.drain();
}

#[test]
fn what_other_nodes_left_goes_when_that_is_asked_for() {
    let scene = Scene::new(Engine::IoUring);
    let first = "seq 60000 >ckpt/state && seq 3000 >ckpt/kept && mkdir ckpt/d && mv ckpt/kept ckpt/d/kept";
    scene.native(&["bash", "-c", first]).expect_success();
    let elsewhere = format!("hostname elsewhere && {first}");
    scene.preloaded(&["unshare", "--uts", "bash", "-c", &elsewhere]).expect_success();
    scene.drain();
    let left = scene.store().join("elsewhere-1.tar");
    assert!(left.exists());
    scene.wipe_stage();
    for last in 50_000..50_003 {
        both(&scene, &format!("seq {last} >ckpt/state"));
    }
    assert!(left.exists(), "a flusher touches its own node's aggregates only");

    let before = listing(&scene);
    for options in [&["--dry-run"][..], &["--dry-run", "--all-nodes"]] {
        prune(&scene, options).expect_success();
        assert_eq!(listing(&scene), before, "{options:?}");
    }
    let report = prune(&scene, &["--dry-run", "--all-nodes", "--json"]).expect_success();
    let report: serde_json::Value = serde_json::from_str(&report.text()).expect("JSON");
    assert!(report["freed_bytes"].as_u64().expect("a number") > 300_000, "{report}");
    prune(&scene, &[]).expect_success();
    assert!(left.exists(), "not asked for");

    scene.native(&["bash", "-c", "echo x >ckpt/x"]).expect_success();
    let program = process::start(
        scene.preloaded_command("bash").args(["-c", "echo x >ckpt/x; echo ready >ready; exec sleep 600"]),
    );
    let deadline = Instant::now() + process::LIMIT;
    while !scene.captured_directory().join("ready").exists() {
        assert!(Instant::now() < deadline, "the program has written nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(prune(&scene, &["--all-nodes"]).status.code(), Some(2), "a flusher serves the store");
    drop(program);
    scene.drain();

    prune(&scene, &["--all-nodes"]).expect_success();
    assert!(!left.exists());
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
}
