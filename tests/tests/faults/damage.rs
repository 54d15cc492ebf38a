//! Bits that flip in a store, ends that are cut off: what is intact is read, what is not is refused, and both are told.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Finished, Scene, process};

const BLOCK: usize = 4096;

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Changes a byte in the middle of `content`, wherever it lies in the store.
fn damage(scene: &Scene, content: &[u8]) {
    for path in scene.store_aggregates() {
        let bytes = fs::read(&path).expect("the store is readable");
        if let Some(place) = bytes.windows(content.len()).position(|window| window == content) {
            write(&path, place + content.len() / 2, b"!");
            return;
        }
    }
    panic!("the content is not in the store");
}

fn write(path: &Path, place: usize, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).expect("the scene is ours");
    file.write_all_at(bytes, place as u64).expect("the scene is ours");
}

/// `sheaf` with a choice for what is damaged, on the scene's store.
fn tool(scene: &Scene, choice: &str, arguments: &[&str]) -> Finished {
    let mut command = scene.sheaf_command();
    process::run(command.env("SHEAF_DAMAGED", choice).arg(arguments[0]).arg(scene.store()).args(&arguments[1..]))
}

#[test]
fn a_damaged_newest_version_is_refused_or_replaced_by_an_older_one() {
    for layout in ["node", "shared:1"] {
        newest_version_is_damaged(layout);
    }
}

fn newest_version_is_damaged(layout: &'static str) {
    let scene = Scene::new(Engine::IoUring).in_layout(layout);
    // What lives beside the older version keeps its aggregate; in an empty stage it is not published again, however
    // young it is.
    scene.preloaded(&["bash", "-c", "seq 2000 >ckpt/state; seq 100000 140000 >ckpt/keep"]).expect_success();
    scene.drain();
    scene.wipe_stage();
    scene.preloaded(&["bash", "-c", "seq 3000 >ckpt/state"]).expect_success();
    scene.drain();
    scene.wipe_stage();
    damage(&scene, &numbers(3000));

    let path = scene.checkpoints().join("state");
    let path = path.to_str().expect("ours");
    let refused = tool(&scene, "refuse", &["cat", path]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{}", refused.describe());
    assert_eq!(tool(&scene, "older", &["cat", path]).expect_success().stdout, numbers(2000));
    for (choice, code, found) in [("refuse", 1, None), ("older", 0, Some(numbers(2000)))] {
        let directory = scene.root().join(choice);
        let extracted = tool(&scene, choice, &["extract", "-C", directory.to_str().expect("ours")]);
        assert_eq!(extracted.status.code(), Some(code), "{}", extracted.describe());
        assert_eq!(fs::read(directory.join(path.trim_start_matches('/'))).ok(), found, "{choice}");
    }

    let read = |choice: &str| {
        let mut command = scene.preloaded_command("cat");
        let finished = process::run(command.env("SHEAF_DAMAGED", choice).args(["ckpt/state"]));
        scene.drain();
        finished
    };
    let refused = read("refuse");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{}", refused.describe());
    assert_eq!(read("older").expect_success().stdout, numbers(2000));
    // From now on that is the newest.
    scene.wipe_stage();
    assert_eq!(read("refuse").expect_success().stdout, numbers(2000));
}

/// An aggregate with three segments, and where these start.
fn three_segments(scene: &Scene) -> (PathBuf, Vec<usize>) {
    let sheaf = artefact("sheaf");
    let sheaf = sheaf.display();
    let script = format!(
        "seq 9000 >ckpt/a && {sheaf} wait && seq 8000 >ckpt/b && {sheaf} wait && seq 7000 >ckpt/c && {sheaf} wait"
    );
    scene.preloaded(&["bash", "-c", &script]).expect_success();
    scene.drain();
    scene.wipe_stage();
    let aggregate = scene.the_aggregate();
    let bytes = fs::read(&aggregate).expect("the scene is ours");
    let is_head = |block: &[u8]| block[1024..].starts_with(b"SHEAFSEG");
    let heads = bytes.chunks_exact(BLOCK).enumerate().filter(|(_, block)| is_head(block));
    let starts: Vec<usize> = heads.map(|(index, _)| index * BLOCK).collect();
    assert!(starts.len() >= 4, "three segments and the index: {starts:?}");
    (aggregate, starts)
}

/// What `sheaf extract` gets, with its exit code.
fn extracted(scene: &Scene, options: &[&str]) -> (Option<i32>, Vec<(String, Vec<u8>)>) {
    let directory = tempfile::tempdir_in(scene.root()).expect("the scene is ours");
    let place = directory.path().to_str().expect("ours");
    let finished = tool(scene, "refuse", &[&["extract", "-C", place], options].concat());
    let checkpoints = scene.checkpoints();
    let below = directory.path().join(checkpoints.strip_prefix("/").expect("absolute"));
    let read = |name: &str| Some((name.to_owned(), fs::read(below.join(name)).ok()?));
    (finished.status.code(), ["a", "b", "c"].into_iter().filter_map(read).collect())
}

#[test]
fn salvaging_gets_what_lies_behind_damage() {
    let scene = Scene::new(Engine::IoUring);
    let (aggregate, starts) = three_segments(&scene);
    let whole = fs::read(&aggregate).expect("the scene is ours");
    let file = |name: &str, last: u32| (name.to_owned(), numbers(last));
    let all = vec![file("a", 9000), file("b", 8000), file("c", 7000)];
    scene.verify();
    assert_eq!(extracted(&scene, &[]), (Some(0), all.clone()));
    let verdict = || tool(&scene, "refuse", &["verify"]).status.code();

    // A head that is gone looks like the end.
    write(&aggregate, starts[1], &[0; 512]);
    assert_eq!(verdict(), Some(1));
    assert_eq!(extracted(&scene, &[]).1, all[..1]);
    assert_eq!(extracted(&scene, &["--salvage"]), (Some(0), all.clone()));
    fs::write(&aggregate, &whole).expect("the scene is ours");

    // The table of contents is gone.
    write(&aggregate, starts[2] - 1, &[whole[starts[2] - 1] ^ 1]);
    assert_eq!(verdict(), Some(1));
    assert_eq!(extracted(&scene, &[]), (Some(1), all[..1].to_vec()));
    assert_eq!(extracted(&scene, &["--salvage"]), (Some(1), vec![all[0].clone(), all[2].clone()]));
    fs::write(&aggregate, &whole).expect("the scene is ours");

    // Data of one file, and the first block of all.
    write(&aggregate, starts[1] + 2 * BLOCK + 100, b"!");
    write(&aggregate, 0, &[0xff; 100]);
    assert_ne!(verdict(), Some(0));
    assert_eq!(extracted(&scene, &["--salvage"]), (Some(1), vec![all[0].clone(), all[2].clone()]));
    fs::write(&aggregate, &whole).expect("the scene is ours");

    // The end.
    fs::write(&aggregate, &whole[..whole.len() - 100]).expect("the scene is ours");
    assert_eq!(verdict(), Some(1));
    fs::write(&aggregate, [&whole[..], b"behind the end"].concat()).expect("the scene is ours");
    assert_eq!(verdict(), Some(1));
    fs::write(&aggregate, &whole).expect("the scene is ours");
    scene.verify();
}

/// In a file that nodes share: what lies behind damage is salvaged, also after all nodes have gone on, who see each
/// other's files.
#[test]
fn nobody_writes_over_what_lies_behind_damage() {
    let scene = Scene::new(Engine::IoUring).in_layout("shared:1");
    let (aggregate, starts) = three_segments(&scene);
    let whole = fs::read(&aggregate).expect("the scene is ours");
    let file = |name: &str, last: u32| (name.to_owned(), numbers(last));
    let all = [file("a", 9000), file("b", 8000), file("c", 7000)];
    let without = |lost: usize| {
        all.iter().enumerate().filter(|(index, _)| *index != lost).map(|(_, file)| file.clone()).collect()
    };
    assert_eq!(extracted(&scene, &[]), (Some(0), all.to_vec()));
    for (what, lost, place, bytes) in [
        ("a range is gone", 1, starts[1] - BLOCK, vec![0; 2 * BLOCK]),
        ("a head is gone", 1, starts[1], vec![0; 512]),
        ("a head has other bytes", 1, starts[1] + 1030, vec![0xff; 40]),
        ("data", 1, starts[1] + 2 * BLOCK + 100, vec![b'!']),
        ("a table of contents", 2, starts[2] - 1, vec![whole[starts[2] - 1] ^ 1]),
    ] {
        write(&aggregate, place, &bytes);
        assert_eq!(tool(&scene, "refuse", &["verify"]).status.code(), Some(1), "{what}");
        let salvaged: Vec<_> = without(lost);
        assert_eq!(extracted(&scene, &["--salvage"]), (Some(1), salvaged.clone()), "{what}");
        // More than any of them.
        scene.preloaded(&["bash", "-c", "seq 20000 >ckpt/d"]).expect_success();
        scene.drain();
        scene.wipe_stage();
        assert_eq!(scene.preloaded(&["cat", "ckpt/d"]).expect_success().stdout, numbers(20000), "{what}");
        scene.drain();
        scene.wipe_stage();
        assert_eq!(extracted(&scene, &["--salvage"]), (Some(1), salvaged), "{what}, and all went on");
        scene
            .store_aggregates()
            .iter()
            .filter(|other| **other != aggregate)
            .for_each(|other| fs::remove_file(other).expect("ours"));
        fs::write(&aggregate, &whole).expect("the scene is ours");
    }
}
