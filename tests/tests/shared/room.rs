//! Room that is given back in files that several nodes write to.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use sheaf_tests::{Engine, process};

use super::Nodes;

fn bytes(nodes: &Nodes) -> u64 {
    let files = nodes.scene.store_aggregates();
    files.iter().map(|file| fs::metadata(file).expect("the scene is ours").blocks() * 512).sum()
}

/// Two nodes rotate their checkpoints in one file: neither touches what is the other's, and the file does not fill the
/// disk.
#[test]
fn two_nodes_that_rotate_their_checkpoints_need_little_room() {
    let nodes = Nodes::new(Engine::IoUring, "shared:1");
    let rotate = "for round in $(seq 12); do head -c 700000 /dev/zero | tr '\\0' \"$2\" >ckpt/$1.new; \
                  echo $round >>ckpt/$1.new; mv ckpt/$1.new ckpt/$1; \"$SHEAF\" wait; done; \
                  : >done-$1; until [ -e enough ]; do sleep 0.05; done";
    let job = |node: &str, letter: &str| {
        let mut job = nodes.job(node, rotate);
        job.env("SHEAF", sheaf_tests::scene::artefact("sheaf")).env("SHEAF_WATERMARK_MS", "100");
        process::start(job.arg(letter))
    };
    let running = [job("one", "1"), job("two", "2")];
    let path = |name: &str| nodes.scene.captured_directory().join(name);
    let running = running.map(|job| job.await_file(&path("done-one")).await_file(&path("done-two")));
    let (live, deadline) = (2 * 700_000, Instant::now() + process::LIMIT);
    while bytes(&nodes) > 2 * live + live / 2 {
        assert!(Instant::now() < deadline, "{} bytes in the store, {live} are alive", bytes(&nodes));
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::write(path("enough"), "").expect("the scene is ours");
    running.into_iter().for_each(|job| drop(job.finish().expect_success()));
    nodes.scene.verify();
    nodes.assert_archives("after rotations");
    let look = "for node in 1:one 2:two; do head -c 700000 ckpt/${node#*:} | tr -d ${node%:*} | wc -c; \
                tail -c +700001 ckpt/${node#*:}; done";
    assert_eq!(nodes.seen_in_the_store(look), "0\n12\n0\n12\n");

    // Nothing is needed any more.
    nodes.run("one", "rm ckpt/one ckpt/two");
    let mut prune = nodes.scene.sheaf_command();
    process::run(prune.args(["prune", "--all-nodes"]).arg(nodes.scene.store())).expect_success();
    assert!(bytes(&nodes) < 700_000, "{} bytes in the store, nothing is alive", bytes(&nodes));
    assert_eq!(nodes.seen_in_the_store("ls ckpt"), "");
    nodes.assert_archives("after all is gone");
}
