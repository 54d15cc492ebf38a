//! `sheaf ls`, `cat`, `extract` and `verify` on the store of a real run, with renames and removals after publication.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sheaf_tests::{Engine, Scene, process, snapshot};

const FIRST: &str = "
    mkdir -p ckpt/run/deep
    for n in 1 2 3 4; do seq $((n * 5000)) >ckpt/run/state-$n; done
    head -c 3000000 /dev/urandom >ckpt/../random; cp random ckpt/run/deep/large
    ln -s run/state-4 ckpt/latest
    chmod 640 ckpt/run/state-1
    : >ckpt/empty";

const SECOND: &str = "
    mv ckpt/run/state-2 ckpt/run/renamed
    rm ckpt/run/state-3
    mv ckpt/run/deep ckpt/moved
    echo changed >ckpt/run/state-4
    chmod 600 ckpt/empty
    ln -sf run/renamed ckpt/latest";

/// A scene after two jobs, the second of which changed what the first had published; and the same natively.
fn two_jobs() -> Scene {
    let scene = Scene::new(Engine::IoUring);
    for script in [FIRST, SECOND] {
        scene.native(&["bash", "-ec", script]).expect_success();
        let random = scene.native_directory().join("random");
        fs::copy(random, scene.captured_directory().join("random")).expect("the scene is ours");
        // Both sides get the same random bytes.
        let script = script.replace("head -c 3000000 /dev/urandom >ckpt/../random", "true");
        scene.preloaded(&["bash", "-ec", &script]).expect_success();
        scene.drain();
    }
    scene.wipe_stage();
    scene
}

#[test]
fn extract_yields_the_final_state() {
    let scene = two_jobs();
    let target = scene.root().join("extracted");
    fs::create_dir(&target).expect("the scene is ours");
    let mut extract = scene.sheaf_command();
    process::run(extract.arg("extract").arg(scene.store()).arg("-C").arg(&target)).expect_success();
    let checkpoints = scene.checkpoints();
    let inside = checkpoints.strip_prefix("/").expect("scenes have absolute paths");
    let found = snapshot::take(&target.join(inside)).expect("extracted files are readable");
    assert_eq!(found, scene.native_snapshot());
}

#[test]
fn cat_yields_bytes_and_knows_what_is_gone() {
    let scene = two_jobs();
    let native = scene.native_directory().join("ckpt");
    let cat = |name: &str| {
        let mut command = scene.sheaf_command();
        process::run(command.arg("cat").arg(scene.store()).arg(scene.checkpoints().join(name)))
    };
    for name in ["run/state-1", "run/renamed", "run/state-4", "moved/large", "empty"] {
        let bytes = fs::read(native.join(name)).expect("it is there");
        assert!(cat(name).expect_success().stdout == bytes, "{name}");
    }
    for name in ["run/state-2", "run/state-3", "run/deep/large", "never"] {
        let refused = cat(name);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{name}: {}", refused.describe());
    }
}

#[test]
fn ls_lists_what_is_alive() {
    let scene = two_jobs();
    let store = scene.store();
    let list = |options: &[&str]| process::run(scene.sheaf_command().arg("ls").args(options).arg(&store));
    let plain = list(&[]).expect_success().text();
    for (name, there) in [("run/state-1", true), ("run/renamed", true), ("moved/large", true), ("run/state-3", false)] {
        assert_eq!(plain.lines().any(|line| line.ends_with(name)), there, "{name} in\n{plain}");
    }
    let native = scene.native_directory().join("ckpt/run/state-1");
    let metadata = fs::metadata(native).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    let long = list(&["-l"]).expect_success().text();
    let line = long.lines().find(|line| line.ends_with("run/state-1")).unwrap_or_else(|| panic!("no line in\n{long}"));
    assert!(line.starts_with("-rw-r-----") && line.contains(&metadata.len().to_string()), "{line}");
    let json = list(&["--json"]).expect_success();
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON text");
    assert!(value.to_string().contains("run/state-1"), "{value}");
}

#[test]
fn verify_tells_damage_from_what_it_cannot_read() {
    let scene = two_jobs();
    scene.verify();
    let mut json = scene.sheaf_command();
    let report = process::run(json.args(["verify", "--json"]).arg(scene.store())).expect_success();
    serde_json::from_slice::<serde_json::Value>(&report.stdout).expect("one JSON text");
    let mut missing = scene.sheaf_command();
    let missing = process::run(missing.arg("verify").arg(scene.root().join("nothing")));
    assert_eq!(missing.status.code(), Some(2), "{}", missing.describe());
}
