//! The power goes after a call has returned that `SHEAF_DURABLE` makes wait: what the call has acknowledged is there,
//! right.

use rand::SeedableRng;
use rand::rngs::StdRng;
use sheaf_tests::disk::Disk;
use sheaf_tests::{Engine, Scene};

/// Closes one file after the other, or appends to one and syncs it, and notes each call that has returned.
const PROGRAM: &str = r#"
import os, sys
how = sys.argv[1]
log = os.open('ckpt/log', os.O_WRONLY | os.O_CREAT, 0o644) if how == 'fsync' else None
with open('acknowledged', 'w', buffering=1) as acknowledged:
    for number in range(1, 1000):
        if how == 'fsync':
            os.write(log, b'%d\n' % number * 1000)
            os.fsync(log)
        else:
            with open(f'ckpt/state-{number}', 'wb', buffering=0) as state:
                state.write(b'%d\n' % number * 5000)
        print(number, file=acknowledged)
"#;

/// Every file whose close has returned is there; of the others each is whole or missing.
fn assert_closed(scene: &Scene, count: u32, what: &str) {
    let mut seen = 0;
    for number in 1..=count + 1 {
        let name = format!("ckpt/state-{number}");
        let read = scene.preloaded(&["cat", &name]);
        if number > count && !read.status.success() {
            continue;
        }
        let right = format!("{number}\n").repeat(5000);
        assert!(read.status.success() && read.text() == right, "{what}: {name} of {count}: {:.200}", read.describe());
        seen += 1;
    }
    assert!(seen >= count, "{what}: {seen} of {count}");
}

/// The log holds everything up to the last fsync that has returned, and nothing that was never written.
fn assert_synced(scene: &Scene, count: u32, what: &str) {
    let text = |last| (1..=last).map(|number| format!("{number}\n").repeat(1000)).collect::<String>();
    let read = scene.preloaded(&["cat", "ckpt/log"]).expect_success().text();
    assert!(read.starts_with(&text(count)), "{what}: {count} syncs returned, {} bytes are there", read.len());
    assert!(text(count + 1).starts_with(&read), "{what}: {count} syncs returned, {} bytes are there", read.len());
}

#[test]
fn power_is_lost_after_durable_calls() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let sides =
        [("ext4", Engine::IoUring), ("xfs", Engine::Pwrite), ("xfs", Engine::IoUring)].map(|side| (side, "node"));
    let others = [
        (("ext4", Engine::Pwrite), "files"),
        (("xfs", Engine::Pwrite), "files"),
        (("ext4", Engine::IoUring), "shared:1"),
        (("xfs", Engine::Pwrite), "shared:2"),
    ];
    for ((kind, engine), layout) in sides.into_iter().chain(others) {
        for policy in ["close", "fsync"] {
            let scene = Scene::new(engine).in_layout(layout);
            let disk = Disk::new(kind, &scene.root().join("disk"), &scene.checkpoints());
            let mut program = scene.preloaded_command("python3");
            program.args(["-c", PROGRAM, policy]).env("SHEAF_DURABLE", policy);
            let count = super::lose_everything(&scene, &disk, &mut program, &mut random);
            disk.recover();
            if layout != "files" {
                scene.verify();
            }
            let what = format!("seed {seed}, {kind}, {engine:?}, {layout}, {policy}");
            let check = if policy == "close" { assert_closed } else { assert_synced };
            check(&scene, count, &what);
            scene.kill_everything();
        }
    }
}
