//! A captured file takes the name of one that lies on the parallel file system: the old one never comes back, whatever
//! happens to the name, and nothing newer goes.

use std::fs;
use std::path::Path;

use sheaf_tests::{Engine, Scene};

/// Files from before in both sides' directory.
fn furnish(scene: &Scene) {
    for side in [scene.native_directory(), scene.captured_directory()] {
        fs::create_dir(side.join("ckpt/d")).expect("the scene is ours");
        fs::write(side.join("ckpt/d/state"), "old\n").expect("the scene is ours");
    }
}

/// Runs shell scripts on both sides, the next after the stage was lost or only drained; the trees are alike after each.
fn alike(scripts: &[&str]) {
    for wipes in [false, true] {
        let scene = Scene::new(Engine::IoUring);
        furnish(&scene);
        for script in scripts {
            let native = scene.native(&["bash", "-ec", script]).expect_success();
            let captured = scene.preloaded(&["bash", "-ec", script]).expect_success();
            assert_eq!(captured.text(), native.text(), "{script}");
            scene.assert_lasts(wipes, script);
        }
        no_markers(scene.tier());
    }
}

/// Every marker has gone with its file.
fn no_markers(tier: &Path) {
    let is_marker = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("replaced"));
    let mut waiting = vec![tier.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("the tier is ours") {
            let entry = entry.expect("the tier is ours");
            assert!(!is_marker(&entry.path()), "{} is left", entry.path().display());
            if entry.file_type().expect("the tier is ours").is_dir() {
                waiting.push(entry.path());
            }
        }
    }
}

#[test]
fn a_directory_that_moves_before_the_name_goes() {
    // Held open, so that the new file is not published before its directory moves.
    alike(&["exec 3>ckpt/d/state; echo new >&3; mv ckpt/d ckpt/e; rm ckpt/e/state; ls -R ckpt"]);
}

#[test]
fn a_directory_that_moves_twice_and_keeps_the_name() {
    alike(&[
        "exec 3>ckpt/d/state; echo new >&3; mkdir ckpt/e; mv ckpt/d ckpt/e/f; mv ckpt/e ckpt/g",
        "cat ckpt/g/f/state",
    ]);
}

#[test]
fn a_directory_whose_name_another_takes() {
    alike(&[
        "exec 3>ckpt/d/state; echo new >&3; mv ckpt/d ckpt/e; mkdir ckpt/d; echo other >ckpt/d/state",
        "rm ckpt/d/state",
    ]);
}

#[test]
fn another_name_of_the_old_file_is_written_later() {
    let take = "ln ckpt/d/state outside; echo new >ckpt/new";
    alike(&[take, "mv ckpt/new ckpt/d/state; echo more >>outside", "cat ckpt/d/state", "rm ckpt/d/state; cat outside"]);
    alike(&[&format!(
        "{take}; mv ckpt/new ckpt/d/state; echo more >>outside; touch -d 2200-01-01 outside; rm ckpt/d/state; cat outside"
    )]);
}

#[test]
fn an_old_file_with_a_time_in_the_future() {
    alike(&["touch -d 2200-01-01 ckpt/d/state", "echo new >ckpt/d/state", "cat ckpt/d/state", "rm ckpt/d/state"]);
}

#[test]
fn a_published_file_that_takes_the_name_of_a_newer_one() {
    alike(&["echo new >ckpt/d/new", "echo more >>ckpt/d/state; mv ckpt/d/new ckpt/d/state", "cat ckpt/d/state"]);
    alike(&["ln -s new ckpt/d/link", "echo more >>ckpt/d/state; mv ckpt/d/link ckpt/d/state", "rm ckpt/d/state"]);
}

#[test]
fn a_file_from_outside_that_takes_a_name_stays() {
    alike(&["echo new >ckpt/d/state; echo real >real; mv real ckpt/d/state", "cat ckpt/d/state", "rm ckpt/d/state"]);
}
