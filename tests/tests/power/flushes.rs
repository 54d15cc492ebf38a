//! The disk as it was between any two of its flushes, with what came after the last flush written, lost, or out of
//! order.
//!
//! The file system lies in an image on the unreliable file system, which records each write and flush of the device.
//! From the record the disk of any moment is made again, mounted, and looked at.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::disk::{Disk, SIZE_BYTES};
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process};

use crate::assert_acknowledged;

const CHECKPOINTS: u32 = 6;
/// Moments that are looked at, of each kind of file system.
const MOMENTS: usize = 6;

/// A write of the device, or with `u64::MAX` a flush.
struct Record {
    offset: u64,
    bytes: std::ops::Range<usize>,
}

fn parse(text: &[u8]) -> Vec<Record> {
    let number = |at: usize| u64::from_le_bytes(text[at..at + 8].try_into().expect("eight bytes"));
    let (mut records, mut at) = (Vec::new(), 0);
    while at + 16 <= text.len() {
        let (offset, length) = (number(at), number(at + 8) as usize);
        records.push(Record { offset, bytes: at + 16..at + 16 + length });
        at += 16 + length;
    }
    records
}

fn is_flush(record: &Record) -> bool {
    record.offset == u64::MAX
}

/// The disk after `count` records; of those after the last flush each may be missing.
fn make_image(image: &Path, text: &[u8], records: &[Record], random: &mut StdRng) {
    let file = File::create(image).expect("the scene is ours");
    file.set_len(SIZE_BYTES).expect("a sparse file");
    let durable = records.iter().rposition(is_flush).map_or(0, |last| last + 1);
    for (index, record) in records.iter().enumerate().filter(|(_, record)| !is_flush(record)) {
        if index < durable || random.random_bool(0.5) {
            file.write_all_at(&text[record.bytes.clone()], record.offset).expect("there is room");
        }
    }
}

/// Writes and waits; yields how much was recorded when each checkpoint was acknowledged.
fn write(scene: &Scene, unreliable: &Unreliable) -> Vec<usize> {
    let mut acknowledged = Vec::new();
    for number in 1..=CHECKPOINTS {
        let script = format!(
            "seq {number} {} >ckpt/state.new; mv ckpt/state.new ckpt/state; echo {number} >ckpt/number-{number}",
            number + 30000
        );
        scene.preloaded(&["bash", "-c", &script]).expect_success();
        scene.sheaf(&["wait"]).expect_success();
        acknowledged.push(unreliable.record().len());
    }
    acknowledged
}

fn round(kind: &str, engine: Engine, layout: &'static str, random: &mut StdRng) {
    let scene = Scene::new(engine).in_layout(layout);
    let device = scene.root().join("device");
    fs::create_dir(&device).expect("the scene is ours");
    let unreliable = Unreliable::new(scene.root(), &device);
    unreliable.rule("record");
    // Calls are recorded in a directory of this name.
    fs::create_dir(device.join(".sheaf")).expect("it is mounted");
    let disk = Disk::new(kind, &device.join(".sheaf/image"), &scene.checkpoints());
    process::run(std::process::Command::new("sync").arg("-f").arg(scene.checkpoints())).expect_success();
    let begin = unreliable.record().len();
    let acknowledged = write(&scene, &unreliable);
    scene.kill_everything();
    scene.wipe_stage();
    let text = unreliable.record();
    disk.unmount();
    drop(unreliable);

    let records = parse(&text);
    let first = records.iter().position(|record| record.bytes.start > begin).expect("something was written");
    assert!(records[first..].iter().filter(|record| is_flush(record)).count() > 10, "{kind}: too few flushes");
    for _ in 0..MOMENTS {
        let count = random.random_range(first..=records.len());
        let recorded = records[count - 1].bytes.end;
        let number = acknowledged.iter().filter(|length| **length <= recorded).count() as u32;
        let image = scene.root().join("image");
        make_image(&image, &text, &records[..count], random);
        let disk = Disk::of(&image, &scene.checkpoints());
        if number > 0 || scene.store().exists() {
            let what = format!("{kind}, {engine:?}, {layout}, {count} of {} records", records.len());
            assert_acknowledged(&scene, number, &what);
        }
        scene.drain();
        scene.kill_everything();
        scene.wipe_stage();
        disk.unmount();
    }
}

#[test]
fn power_is_lost_between_any_two_flushes() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for (kind, engine, layout) in [
        ("ext4", Engine::IoUring, "node"),
        ("xfs", Engine::Pwrite, "node"),
        ("ext4", Engine::IoUring, "shared:1"),
        ("xfs", Engine::Pwrite, "shared:2"),
        ("ext4", Engine::Pwrite, "files"),
    ] {
        round(kind, engine, layout, &mut random);
    }
}
