//! The tracker and the store's view against the tree itself: whatever programs do, what is published is what is there.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use sheaf_common::layout;

use super::source::LeaseKeeper;
use super::tracker::{Batch, Haste, LeftOut, Stubs, Tracker};
use super::watch::Change;
use super::{Stage, lease};
use crate::aggregate::{BLOCK, FileChecksummer, Identity, Kind, SegmentPlan, TarNames};
use crate::store::{AggregateId, Node, Store};

/// A stage, a tracker, and a store whose aggregate exists in memory only.
pub(super) struct Scene {
    _tier: tempfile::TempDir,
    zone: Vec<u8>,
    pub(super) stage: Stage,
    keeper: LeaseKeeper,
    pub(super) tracker: Tracker,
    pub(super) store: Store,
    identity: Identity,
    aggregate: AggregateId,
    names: TarNames,
    sequence: u64,
}

/// The zone of tests that need no real directory.
const ZONE: &[u8] = b"s";

pub(super) fn stage_at(directory: &Path) -> Stage {
    Stage::create(directory, Path::new("/s/.sheaf")).unwrap()
}

impl Scene {
    pub(super) fn new() -> Scene {
        let tier = tempfile::tempdir_in("/dev/shm").unwrap();
        Scene::with_zone(tier, ZONE.to_vec())
    }

    pub(super) fn with_zone(tier: tempfile::TempDir, zone: Vec<u8>) -> Scene {
        lease::block_signals().unwrap();
        let stage = stage_at(&tier.path().join("sheaf-0/0123456789abcdef"));
        fs::create_dir_all(stage.tree_path(&zone)).unwrap();
        let mut store = Store::open(&tier.path().join("store")).unwrap();
        let identity = Identity {
            uuid: [7; 16],
            node: "n".into(),
            job: String::new(),
            incarnation: 1,
            created_ns: 1,
            stage: [0; 16],
            watermark_ns: 0,
            acknowledged_ns: 0,
        };
        let file = tier.path().join("n-1.tar");
        fs::write(&file, crate::aggregate::format_entry(&identity)).unwrap();
        let aggregate = store.add_own(&file, None, &identity).unwrap();
        let keeper = LeaseKeeper::start(stage.path("scratch")).unwrap();
        let mut tracker = Tracker::new(stage.clone(), keeper.clone(), vec![zone.clone()]).unwrap();
        tracker.rescan(&store).unwrap();
        Scene {
            _tier: tier,
            zone,
            stage,
            keeper,
            tracker,
            store,
            identity,
            aggregate,
            names: TarNames::default(),
            sequence: 1,
        }
    }

    pub(super) fn at(&self, name: &str) -> std::path::PathBuf {
        self.stage.tree_path(&[&self.zone, &b"/"[..], name.as_bytes()].concat())
    }

    pub(super) fn follow(&mut self) {
        let changes = self.tracker.drain().unwrap();
        self.tracker.apply_all(changes).unwrap();
        // As the watcher does.
        while self.tracker.overflowed() {
            self.tracker.forget_files();
            while self.tracker.first_position().is_some() {
                self.publish_batch();
                self.tracker.forget_files();
            }
            self.tracker.rescan(&self.store).unwrap();
        }
    }

    pub(super) fn publish(&mut self) -> Batch {
        self.follow();
        self.publish_batch()
    }

    fn publish_batch(&mut self) -> Batch {
        let batch = self.tracker.next_batch(Haste::None).unwrap();
        if !batch.entries.is_empty() {
            self.publish_as(&batch);
        }
        batch
    }

    fn tracker_batch(&mut self) -> Batch {
        self.follow();
        self.tracker.next_batch(Haste::None).unwrap()
    }

    fn publish_as(&mut self, batch: &Batch) {
        let plan = SegmentPlan::new(&self.identity, self.sequence, batch.entries.clone(), &mut self.names).unwrap();
        let checksums: Vec<_> = batch
            .sources
            .iter()
            .map(|source| {
                source.as_ref().map(|source| {
                    let mut content = vec![0; source.size() as usize];
                    source.read_exact_at(&mut content, 0).unwrap();
                    let mut checksummer = FileChecksummer::default();
                    checksummer.data(&content);
                    checksummer.finish()
                })
            })
            .collect();
        self.store.publish(self.aggregate, &plan.into_segment(BLOCK, checksums));
        self.sequence += 1;
    }

    /// Publishes until nothing is left.
    pub(super) fn settle(&mut self) {
        while !self.publish().entries.is_empty() || self.tracker.first_position().is_some() || self.tracker.overflowed()
        {
        }
    }

    /// As if the flusher had died and another had taken over.
    pub(super) fn restart(&mut self) -> Stubs {
        self.tracker = Tracker::new(self.stage.clone(), self.keeper.clone(), vec![self.zone.clone()]).unwrap();
        self.tracker.rescan(&self.store).unwrap()
    }

    /// The files and links of the tree, and those of the view, as comparable lines.
    fn both(&self) -> (Vec<String>, Vec<String>) {
        let mut tree = Vec::new();
        walk(&self.stage.tree_path(b""), "", &mut tree);
        tree.sort();
        let mut view: Vec<String> = self
            .store
            .view()
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(version) => Some(format!("{} {} {}", path.escape_ascii(), version.size, version.inode)),
                Node::Symlink(link) => Some(format!("{} -> {}", path.escape_ascii(), link.target.escape_ascii())),
                Node::Directory(_) => None,
            })
            .collect();
        view.sort();
        (tree, view)
    }

    pub(super) fn check(&mut self) {
        self.settle();
        let (tree, view) = self.both();
        assert_eq!(tree, view);
    }
}

fn walk(directory: &Path, prefix: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{path}/"), lines);
        } else if metadata.is_file() {
            lines.push(format!("{path} {} {}", metadata.len(), metadata.ino()));
        } else {
            lines.push(format!("{path} -> {}", fs::read_link(entry.path()).unwrap().display()));
        }
    }
}

#[test]
fn commit_idioms() {
    let mut scene = Scene::new();
    fs::write(scene.at("a.tmp"), b"1").unwrap();
    fs::rename(scene.at("a.tmp"), scene.at("a")).unwrap();
    symlink("a", scene.at("latest")).unwrap();
    scene.check();
    // Rotation: the published versions move, and the new file follows.
    fs::rename(scene.at("a"), scene.at("a.bak")).unwrap();
    fs::write(scene.at("a"), b"22").unwrap();
    scene.check();
    // A link committed under its final name, the temporary one removed.
    fs::write(scene.at("t"), b"333").unwrap();
    fs::hard_link(scene.at("t"), scene.at("final")).unwrap();
    fs::remove_file(scene.at("t")).unwrap();
    scene.check();
    fs::create_dir(scene.at("step1.tmp")).unwrap();
    fs::write(scene.at("step1.tmp/x"), b"4444").unwrap();
    fs::rename(scene.at("step1.tmp"), scene.at("step1")).unwrap();
    scene.check();
    fs::remove_file(scene.at("latest")).unwrap();
    symlink("step1/x", scene.at("latest")).unwrap();
    scene.check();
}

#[test]
fn a_file_that_is_open_is_not_published_and_an_older_version_stays() {
    let mut scene = Scene::new();
    fs::write(scene.at("ckpt"), b"old").unwrap();
    scene.check();
    let mut writer = File::create(scene.at("ckpt.tmp")).unwrap();
    writer.write_all(b"half").unwrap();
    fs::rename(scene.at("ckpt.tmp"), scene.at("ckpt")).unwrap();
    scene.settle();
    assert!(matches!(scene.store.view().get(b"s/ckpt"), Some(Node::File(version)) if version.size == 3));
    assert_eq!(scene.tracker.unfinished(), 1);
    writer.write_all(b"done").unwrap();
    drop(writer);
    scene.check();
    assert_eq!(scene.tracker.unfinished(), 0);
}

#[test]
fn a_batch_is_a_prefix_of_what_happened() {
    let mut scene = Scene::new();
    fs::write(scene.at("data"), b"1").unwrap();
    scene.follow();
    fs::write(scene.at("data"), b"22").unwrap();
    fs::write(scene.at("latest"), b"data is 22").unwrap();
    let batch = scene.publish();
    let position = |name: &[u8]| batch.entries.iter().position(|entry| entry.path == name).unwrap();
    assert!(position(b"s/data") < position(b"s/latest"));
    let times: Vec<u64> = batch.entries.iter().map(|entry| entry.operation_time_ns).collect();
    assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
}

#[test]
fn what_came_after_a_complete_file_waits_for_it_while_it_is_written_again() {
    let mut scene = Scene::new();
    let is_published = |scene: &Scene, name: &str| scene.store.view().get(format!("s/{name}").as_bytes()).is_some();
    fs::write(scene.at("earlier"), b"0").unwrap();
    fs::write(scene.at("a"), b"1").unwrap();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    symlink("b", scene.at("latest")).unwrap();
    let reopen = |scene: &mut Scene| {
        // Everything until now has been seen before the file is opened again.
        scene.follow();
        let mut writer = File::options().append(true).open(scene.at("a")).unwrap();
        writer.write_all(b"2").unwrap();
        writer
    };
    let writer = reopen(&mut scene);
    scene.publish();
    assert!(is_published(&scene, "earlier"));
    assert!(!["a", "b", "latest"].iter().any(|name| is_published(&scene, name)));
    // Complete again, now behind the link in the order of events; and open once more.
    drop(writer);
    fs::rename(scene.at("latest"), scene.at("newest")).unwrap();
    let writer = reopen(&mut scene);
    scene.publish();
    assert!(!["a", "b", "latest", "newest"].iter().any(|name| is_published(&scene, name)));
    drop(writer);
    scene.check();
}

#[test]
fn nobody_who_waits_waits_for_a_file_that_is_written_again() {
    let mut scene = Scene::new();
    fs::write(scene.at("log"), b"1").unwrap();
    scene.follow();
    let _writer = File::options().append(true).open(scene.at("log")).unwrap();
    fs::write(scene.at("first"), b"1").unwrap();
    scene.publish();
    assert!(scene.store.view().get(b"s/first").is_none());
    let batch = scene.tracker.next_batch(Haste::Awaited).unwrap();
    assert!(batch.entries.iter().any(|entry| entry.path == b"s/first"));
    assert!(scene.tracker.first_position().is_none());
}

#[test]
fn a_file_that_stays_open_holds_nothing_up_for_long_and_not_twice() {
    let mut scene = Scene::new();
    fs::write(scene.at("log"), b"1").unwrap();
    scene.follow();
    let _writer = File::options().append(true).open(scene.at("log")).unwrap();
    fs::write(scene.at("first"), b"1").unwrap();
    scene.publish();
    assert!(scene.tracker.is_held_back() && scene.tracker.first_position().is_some());
    while scene.tracker.first_position().is_some() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        scene.publish();
    }
    assert!(scene.store.view().get(b"s/first").is_some());
    drop(File::options().append(true).open(scene.at("log")).unwrap());
    fs::write(scene.at("second"), b"2").unwrap();
    scene.publish();
    assert!(scene.store.view().get(b"s/second").is_some());
}

/// When a file was last changed, once the watermark has passed what came before. What happens next is seen apart from
/// it.
fn change_time_ns(scene: &mut Scene, name: &str) -> u64 {
    let metadata = fs::metadata(scene.at(name)).unwrap();
    let time_ns = metadata.ctime() as u64 * 1_000_000_000 + metadata.ctime_nsec() as u64;
    // The kernel's stamps are coarse.
    std::thread::sleep(std::time::Duration::from_millis(20));
    scene.follow();
    std::thread::sleep(std::time::Duration::from_millis(20));
    time_ns
}

/// Writes something that a watermark passes, and then a file; yields when the file was complete.
fn complete_file(scene: &mut Scene, name: &str) -> u64 {
    fs::write(scene.at(&format!("before-{name}")), b"0").unwrap();
    change_time_ns(scene, &format!("before-{name}"));
    fs::write(scene.at(name), b"1").unwrap();
    change_time_ns(scene, name)
}

#[test]
fn a_watermark_passes_what_is_published() {
    let mut scene = Scene::new();
    for name in ["a", "b"] {
        let complete_ns = complete_file(&mut scene, name);
        let batch = scene.publish();
        assert!(batch.watermark_ns > complete_ns && scene.tracker.watermark_ns() >= batch.watermark_ns);
        scene.follow();
        assert!(scene.tracker.watermark_ns() > batch.watermark_ns, "time goes on when nothing happens");
    }
}

#[test]
fn no_watermark_passes_what_waits_for_the_next_batch() {
    let mut scene = Scene::new();
    scene.tracker.limit_batch_files(1);
    fs::write(scene.at("a"), b"1").unwrap();
    let complete_ns = complete_file(&mut scene, "b");
    // The record of the first has this time: it is later than that of what still waits.
    fs::set_permissions(scene.at("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let batch = scene.publish();
    assert!(batch.entries[0].path == b"s/a" && batch.entries[0].operation_time_ns > complete_ns);
    assert!(batch.watermark_ns < complete_ns);
    while scene.store.view().get(b"s/b").is_none() {
        assert!(scene.tracker.watermark_ns() < complete_ns);
        scene.publish();
    }
    scene.settle();
    assert!(scene.tracker.watermark_ns() > complete_ns);
    // Neither does one pass an operation.
    complete_file(&mut scene, "c");
    fs::remove_file(scene.at("b")).unwrap();
    let removed_ns = change_time_ns(&mut scene, "");
    while scene.store.view().get(b"s/b").is_some() {
        assert!(scene.tracker.watermark_ns() < removed_ns);
        scene.publish();
    }
}

#[test]
fn no_watermark_passes_what_is_held_back() {
    let mut scene = Scene::new();
    let complete_ns = complete_file(&mut scene, "log");
    let writer = File::options().append(true).open(scene.at("log")).unwrap();
    fs::write(scene.at("latest"), b"log").unwrap();
    let batch = scene.publish();
    assert!(scene.tracker.is_held_back() && batch.watermark_ns < complete_ns);
    assert!(batch.entries.iter().all(|entry| entry.operation_time_ns < complete_ns));
    scene.follow();
    assert!(scene.tracker.watermark_ns() < complete_ns);
    drop(writer);
    scene.check();
    assert!(scene.tracker.watermark_ns() > complete_ns);
}

#[test]
fn no_watermark_passes_a_file_that_was_complete_and_is_left_out() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("d")).unwrap();
    let complete_ns = complete_file(&mut scene, "log");
    let writer = File::options().append(true).open(scene.at("log")).unwrap();
    fs::write(scene.at("latest"), b"log").unwrap();
    scene.follow();
    let batch = scene.tracker.next_batch(Haste::Awaited).unwrap();
    assert!(batch.entries.iter().any(|entry| entry.path == b"s/latest"));
    assert!(batch.entries.iter().all(|entry| entry.path != b"s/log") && batch.watermark_ns < complete_ns);
    scene.publish_as(&batch);
    // Whatever becomes of its name.
    let stays_below = |scene: &mut Scene, what: &str| {
        scene.settle();
        assert!(scene.tracker.watermark_ns() < complete_ns, "{what}");
    };
    stays_below(&mut scene, "nothing happens");
    fs::rename(scene.at("log"), scene.at("d/log")).unwrap();
    stays_below(&mut scene, "it moves");
    fs::rename(scene.at("d"), scene.at("e")).unwrap();
    stays_below(&mut scene, "its directory moves");
    scene.tracker.recheck_unfinished();
    stays_below(&mut scene, "it is looked at again");
    scene.tracker.apply_all(vec![Change::Overflow]).unwrap();
    stays_below(&mut scene, "events are lost");
    drop(writer);
    scene.check();
    assert!(scene.tracker.watermark_ns() > complete_ns);
}

#[test]
fn a_file_that_was_left_out_and_is_gone_stops_no_watermark() {
    let mut scene = Scene::new();
    for replace in [false, true] {
        let complete_ns = complete_file(&mut scene, "log");
        let _writer = File::options().append(true).open(scene.at("log")).unwrap();
        scene.tracker.next_batch(Haste::Awaited).unwrap();
        assert!(scene.tracker.watermark_ns() < complete_ns);
        if replace {
            fs::write(scene.at("new"), b"2").unwrap();
            fs::rename(scene.at("new"), scene.at("log")).unwrap();
        } else {
            fs::remove_file(scene.at("log")).unwrap();
        }
        scene.settle();
        assert!(scene.tracker.watermark_ns() > complete_ns, "{replace}");
    }
}

#[test]
fn no_watermark_passes_what_the_flusher_has_left_out() {
    let mut scene = Scene::new();
    let complete_ns = complete_file(&mut scene, "a");
    let batch = scene.tracker_batch();
    assert_eq!(batch.known_left_out, 0);
    let inode = fs::metadata(scene.at("a")).unwrap().ino();
    let left_out =
        |unreadable: Option<&str>| LeftOut { path: b"s/a".to_vec(), inode, unreadable: unreadable.map(str::to_owned) };
    scene.tracker.publish_again(&[left_out(None)]);
    assert!(scene.tracker.watermark_ns() < complete_ns);
    let batch = scene.tracker_batch();
    assert!(batch.known_left_out == 1 && batch.watermark_ns > complete_ns);
    // One that cannot be read at all.
    scene.tracker.publish_again(&[left_out(Some("no"))]);
    fs::write(scene.at("b"), b"2").unwrap();
    let batch = scene.tracker_batch();
    assert!(batch.known_left_out == 2 && batch.watermark_ns == 0);
    scene.tracker.recheck_unfinished();
    assert!(scene.tracker.watermark_ns() == 0 && scene.tracker_batch().watermark_ns > complete_ns);
}

#[test]
fn no_watermark_is_told_before_what_a_scan_has_found_is_published() {
    let mut scene = Scene::new();
    complete_file(&mut scene, "a");
    scene.tracker.limit_batch_files(1);
    scene.restart();
    scene.tracker.limit_batch_files(1);
    assert_eq!(scene.tracker.watermark_ns(), 0);
    let told: Vec<u64> = std::iter::repeat_with(|| scene.publish()).take(2).map(|batch| batch.watermark_ns).collect();
    assert!(told[0] == 0 && told[1] > 0, "{told:?}");
}

#[test]
fn an_operation_has_the_time_at_which_it_happened_however_late_it_is_published() {
    let mut scene = Scene::new();
    for name in ["a", "b", "c"] {
        fs::write(scene.at(name), name).unwrap();
    }
    scene.publish();
    fs::rename(scene.at("a"), scene.at("d")).unwrap();
    fs::remove_file(scene.at("b")).unwrap();
    fs::set_permissions(scene.at("c"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(scene.at("e")).unwrap();
    let happened = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let batch = scene.publish();
    let kinds: Vec<Kind> = batch.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::Rename, Kind::Unlink, Kind::SetAttributes, Kind::Directory]);
    // Stamps that are the same are told apart by nanoseconds.
    let latest_ns = happened.as_nanos() as u64 + batch.entries.len() as u64;
    let times: Vec<u64> = batch.entries.iter().map(|entry| entry.operation_time_ns).collect();
    assert!(times.is_sorted() && times.iter().all(|time_ns| *time_ns <= latest_ns), "{times:?} after {latest_ns}");
}

#[test]
fn what_is_done_to_a_file_of_a_node_whose_clock_is_ahead_is_later_than_the_file() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), "a").unwrap();
    let ahead_ns = u64::MAX / 4;
    let mut batch = scene.tracker_batch();
    batch.entries[0].operation_time_ns = ahead_ns;
    scene.publish_as(&batch);
    scene.tracker.has_seen(&scene.store);
    fs::remove_file(scene.at("a")).unwrap();
    let removal = scene.publish();
    assert_eq!(removal.entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Unlink]);
    assert!(removal.entries[0].operation_time_ns > ahead_ns);
}

#[test]
fn a_new_flusher_publishes_only_what_changed() {
    let mut scene = Scene::new();
    fs::write(scene.at("kept"), b"1").unwrap();
    fs::write(scene.at("changed"), b"1").unwrap();
    fs::write(scene.at("removed"), b"1").unwrap();
    // Older than the grain of the kernel's time stamps, so that the records prove something.
    std::thread::sleep(std::time::Duration::from_millis(30));
    scene.check();
    let populated = rustix::fs::Mode::from_raw_mode(0o700 | sheaf_common::layout::POPULATED_BIT);
    rustix::fs::chmod(scene.stage.tree_path(ZONE), populated).unwrap();
    fs::write(scene.at("changed"), b"2").unwrap();
    fs::remove_file(scene.at("removed")).unwrap();
    fs::write(scene.at("new"), b"1").unwrap();
    scene.restart();
    let batch = scene.publish();
    let mut names: Vec<_> = batch.entries.iter().map(|entry| entry.path.clone()).collect();
    names.sort();
    assert_eq!(names, [b"s/changed".to_vec(), b"s/new".to_vec(), b"s/removed".to_vec()]);
    scene.check();
}

#[test]
fn attributes_and_links_are_followed() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"1").unwrap();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    scene.check();
    // Written through one name: the other shows it, too.
    fs::write(scene.at("b"), b"22").unwrap();
    scene.check();
    rustix::fs::chmod(scene.at("a"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    scene.settle();
    let Some(Node::File(version)) = scene.store.view().get(b"s/a") else { panic!("a is gone") };
    assert_eq!(version.attributes.mode, 0o640);
}

#[test]
fn a_rename_between_the_look_and_the_open_takes_the_newer_version_along() {
    let mut scene = Scene::new();
    fs::write(scene.at("tmp"), b"v1").unwrap();
    scene.check();
    fs::write(scene.at("tmp"), b"version two").unwrap();
    scene.follow();
    fs::rename(scene.at("tmp"), scene.at("final")).unwrap();
    scene.publish_batch();
    scene.check();
}

#[test]
fn two_moves_to_one_name_that_the_kernel_merges_are_both_seen() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("watched")).unwrap();
    fs::write(scene.at("a"), b"first").unwrap();
    scene.check();
    // Outside the tree nothing is watched: the two arrivals stand side by side in the queue.
    let outside = scene.stage.path("scratch").join("b");
    fs::write(&outside, b"second").unwrap();
    fs::rename(scene.at("a"), scene.at("watched/x")).unwrap();
    fs::rename(&outside, scene.at("watched/x")).unwrap();
    scene.check();
}

#[test]
fn a_new_directory_whose_parent_moves_before_it_is_watched_is_found() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("one")).unwrap();
    scene.check();
    fs::create_dir(scene.at("one/two")).unwrap();
    fs::write(scene.at("one/two/deep"), b"data").unwrap();
    fs::rename(scene.at("one"), scene.at("three")).unwrap();
    scene.check();
    assert!(scene.store.view().get(b"s/three/two/deep").is_some());
}

#[test]
fn a_new_directory_whose_name_a_file_or_a_link_took_before_it_is_watched_stops_nothing() {
    let mut scene = Scene::new();
    scene.check();
    for name in ["one", "two"] {
        fs::create_dir(scene.at(name)).unwrap();
        fs::write(scene.at(name).join("moved"), b"data").unwrap();
        fs::rename(scene.at(name), scene.at("away")).unwrap();
        fs::remove_dir_all(scene.at("away")).unwrap();
    }
    fs::write(scene.at("one"), b"file").unwrap();
    std::os::unix::fs::symlink("one", scene.at("two")).unwrap();
    fs::write(scene.at("three"), b"file").unwrap();
    scene.check();
    assert_eq!(scene.store.view().iter().filter(|(_, node)| !matches!(node, Node::Directory(_))).count(), 3);
}

#[test]
fn a_directory_that_took_the_name_of_one_that_moved_is_not_taken_for_it() {
    let mut scene = Scene::new();
    scene.check();
    fs::create_dir(scene.at("one")).unwrap();
    fs::write(scene.at("one/early"), b"data").unwrap();
    fs::rename(scene.at("one"), scene.at("three")).unwrap();
    fs::create_dir(scene.at("one")).unwrap();
    fs::write(scene.at("one/late"), b"data too").unwrap();
    scene.check();
}

#[test]
fn a_mode_that_changes_before_the_file_moves_on_is_recorded() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("one")).unwrap();
    fs::write(scene.at("one/a"), b"data").unwrap();
    fs::write(scene.at("b"), b"data").unwrap();
    scene.check();
    rustix::fs::chmod(scene.at("one/a"), rustix::fs::Mode::from_raw_mode(0o602)).unwrap();
    fs::rename(scene.at("one"), scene.at("two")).unwrap();
    rustix::fs::chmod(scene.at("b"), rustix::fs::Mode::from_raw_mode(0o602)).unwrap();
    fs::rename(scene.at("b"), scene.at("c")).unwrap();
    scene.check();
    for name in [&b"s/two/a"[..], b"s/c"] {
        let Some(Node::File(version)) = scene.store.view().get(name) else { panic!("it is gone") };
        assert_eq!(version.attributes.mode, 0o602);
    }
}

#[test]
fn a_mode_that_was_set_by_a_name_that_is_gone_is_recorded_for_the_others() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"data").unwrap();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    fs::write(scene.at("c"), b"another").unwrap();
    scene.check();
    rustix::fs::chmod(scene.at("a"), rustix::fs::Mode::from_raw_mode(0o602)).unwrap();
    fs::rename(scene.at("c"), scene.at("a")).unwrap();
    scene.check();
    let Some(Node::File(version)) = scene.store.view().get(b"s/b") else { panic!("it is gone") };
    assert_eq!(version.attributes.mode, 0o602);
}

#[test]
fn a_mode_that_was_set_by_a_second_name_that_is_gone_is_recorded() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"data").unwrap();
    scene.check();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    scene.follow();
    rustix::fs::chmod(scene.at("b"), rustix::fs::Mode::from_raw_mode(0o602)).unwrap();
    fs::remove_file(scene.at("b")).unwrap();
    scene.check();
    let Some(Node::File(version)) = scene.store.view().get(b"s/a") else { panic!("it is gone") };
    assert_eq!(version.attributes.mode, 0o602);
}

#[test]
fn a_stub_whose_mode_changed_while_no_flusher_ran_is_recorded() {
    let mut scene = scene_with_stub();
    let mode = rustix::fs::Mode::from_raw_mode(0o602 | sheaf_common::layout::STUB_BIT);
    rustix::fs::chmod(scene.at("a"), mode).unwrap();
    scene.restart();
    scene.settle();
    let Some(Node::File(version)) = scene.store.view().get(b"s/a") else { panic!("it is gone") };
    assert_eq!(version.attributes.mode, 0o602);
}

#[test]
fn what_was_written_through_a_name_that_is_gone_again_is_published_under_the_other() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"old").unwrap();
    scene.check();
    // As the library makes links.
    let inode = fs::metadata(scene.at("a")).unwrap().ino();
    let aside = scene.stage.path("links").join(format!("{inode}-1-1-1"));
    fs::hard_link(scene.at("a"), &aside).unwrap();
    fs::rename(&aside, scene.at("b")).unwrap();
    fs::write(scene.at("b"), b"new data").unwrap();
    fs::remove_file(scene.at("b")).unwrap();
    fs::write(scene.at("b"), b"another file").unwrap();
    scene.check();
    fs::remove_file(scene.at("b")).unwrap();
    scene.check();
    // The same, when the new name has been seen before it moves on.
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    scene.follow();
    fs::write(scene.at("b"), b"newer data").unwrap();
    fs::rename(scene.at("b"), scene.at("c")).unwrap();
    fs::remove_file(scene.at("c")).unwrap();
    scene.check();
}

#[test]
fn a_second_name_in_a_directory_that_moves_is_not_looked_for_at_its_old_place() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("one")).unwrap();
    fs::write(scene.at("a"), b"old").unwrap();
    scene.check();
    fs::hard_link(scene.at("a"), scene.at("one/b")).unwrap();
    scene.follow();
    fs::rename(scene.at("one"), scene.at("two")).unwrap();
    symlink("two", scene.at("one")).unwrap();
    fs::write(scene.at("a"), b"new data").unwrap();
    scene.check();
}

#[test]
fn names_of_one_link_stay_one_when_one_of_them_moves_on() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("one")).unwrap();
    symlink("target", scene.at("a")).unwrap();
    scene.check();
    // The second name is recorded when the first has moved twice, and only the first move has been read.
    fs::hard_link(scene.at("a"), scene.at("one/b")).unwrap();
    fs::rename(scene.at("a"), scene.at("c")).unwrap();
    scene.follow();
    fs::rename(scene.at("c"), scene.at("d")).unwrap();
    scene.publish_batch();
    scene.check();
    let names = scene.store.view().names(scene.store.view().get(b"s/d").unwrap());
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn only_what_is_published_may_be_evicted() {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"version one").unwrap();
    scene.check();
    assert_eq!((scene.tracker.resident(0).count(), scene.tracker.resident(1).count()), (0, 1));
    File::options().write(true).open(scene.at("a")).unwrap().write_all(b"version two").unwrap();
    scene.check();
    assert_eq!((scene.tracker.resident(1).count(), scene.tracker.resident(2).count()), (0, 1));
}

/// A scene with one published file, `a`, whose data has left the stage.
fn scene_with_stub() -> Scene {
    let mut scene = Scene::new();
    fs::write(scene.at("a"), b"data").unwrap();
    scene.check();
    let inode = fs::metadata(scene.at("a")).unwrap().ino();
    assert!(evict_file(&mut scene, b"s/a", inode));
    scene.settle();
    scene
}

#[test]
fn a_second_name_of_a_stub_is_recorded() {
    let mut scene = scene_with_stub();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    scene.settle();
    fs::remove_file(scene.at("a")).unwrap();
    scene.check();
}

/// Gives a file another name as the library does.
fn link(scene: &Scene, from: &str, to: &str) {
    let inode = fs::symlink_metadata(scene.at(from)).unwrap().ino();
    let aside = scene.stage.path(layout::LINKS).join(format!("{inode}-1"));
    fs::hard_link(scene.at(from), &aside).unwrap();
    let (directory, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
    if rustix::fs::renameat_with(directory, &aside, directory, scene.at(to), flags).is_err() {
        fs::remove_file(&aside).unwrap();
    }
}

/// The store still holds what the stub `a` was, and a scan of the tree agrees.
fn assert_kept(mut scene: Scene, name: &str) {
    scene.check();
    let path = [ZONE, b"/", name.as_bytes()].concat();
    assert!(matches!(scene.store.view().get(&path), Some(Node::File(version)) if version.size == 4));
    scene.restart();
    scene.check();
}

#[test]
fn a_stub_that_got_another_name_and_lost_its_own_before_either_was_published_is_kept() {
    let scene = scene_with_stub();
    link(&scene, "a", "b");
    fs::remove_file(scene.at("a")).unwrap();
    assert_kept(scene, "b");
}

#[test]
fn a_stub_that_got_another_name_and_was_replaced_before_either_was_published_is_kept() {
    let scene = scene_with_stub();
    fs::write(scene.at("new"), b"other").unwrap();
    link(&scene, "a", "b");
    fs::rename(scene.at("new"), scene.at("a")).unwrap();
    assert_kept(scene, "b");
}

#[test]
fn a_stub_that_went_by_several_names_before_any_was_published_is_kept() {
    let scene = scene_with_stub();
    fs::create_dir(scene.at("d")).unwrap();
    link(&scene, "a", "d/b");
    fs::remove_file(scene.at("a")).unwrap();
    fs::rename(scene.at("d"), scene.at("e")).unwrap();
    link(&scene, "e/b", "c");
    fs::remove_file(scene.at("e/b")).unwrap();
    fs::write(scene.at("a"), b"other").unwrap();
    fs::rename(scene.at("c"), scene.at("f")).unwrap();
    assert_kept(scene, "f");
}

#[test]
fn a_stub_that_took_the_name_of_one_of_the_same_size_and_time_is_not_taken_for_it() {
    let mut scene = Scene::new();
    let populated = rustix::fs::Mode::from_raw_mode(0o700 | layout::POPULATED_BIT);
    rustix::fs::chmod(scene.stage.tree_path(ZONE), populated).unwrap();
    for (name, content) in [("a", b"one"), ("b", b"two")] {
        fs::write(scene.at(name), content).unwrap();
        let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, scene.at(name), &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    scene.check();
    let inodes = ["a", "b"].map(|name| fs::metadata(scene.at(name)).unwrap().ino());
    assert!(evict_file(&mut scene, b"s/a", inodes[0]) && evict_file(&mut scene, b"s/b", inodes[1]));
    scene.settle();
    fs::rename(scene.at("b"), scene.at("a")).unwrap();
    let stubs = scene.restart();
    let is_second = |version: &crate::store::Version| version.checksums.whole == crate::aggregate::crc32c(b"two");
    assert!(matches!(&stubs[..], [(found, version)] if *found == inodes[1] && is_second(version)));
    scene.check();
    assert!(matches!(scene.store.view().get(b"s/a"), Some(Node::File(version)) if is_second(version)));
}

#[test]
fn a_stub_whose_access_time_a_program_has_set_is_what_its_name_says() {
    let mut scene = scene_with_stub();
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let kept = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: kept };
    rustix::fs::utimensat(rustix::fs::CWD, scene.at("a"), &times, rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(scene.restart().len(), 1);
    scene.check();
}

#[test]
fn a_stub_whose_move_is_seen_in_two_halves_keeps_its_data() {
    let mut scene = scene_with_stub();
    let populated = rustix::fs::Mode::from_raw_mode(0o700 | sheaf_common::layout::POPULATED_BIT);
    rustix::fs::chmod(scene.stage.tree_path(ZONE), populated).unwrap();
    let aside = scene.stage.path("scratch").join("x");
    fs::rename(scene.at("a"), &aside).unwrap();
    fs::rename(&aside, scene.at("b")).unwrap();
    scene.check();
}

#[test]
fn a_scan_beside_a_program_that_makes_and_removes_directories_forgets_nothing() {
    let mut scene = Scene::new();
    fs::create_dir(scene.at("busy")).unwrap();
    for index in 0..10 {
        fs::write(scene.at(&format!("f{index}")), b"v1").unwrap();
    }
    scene.settle();
    let directory = scene.at("busy/d");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let churn = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            fs::create_dir(&directory).unwrap();
            fs::remove_dir(&directory).unwrap();
        }
    });
    for _ in 0..200 {
        drop(scene.tracker.drain().unwrap());
        // A scan of its own; whatever the churn made of the queue is to be looked at again, not kept.
        scene.restart();
    }
    drop(stop);
    churn.join().unwrap();
    scene.check();
}

#[test]
fn a_stub_that_a_dying_flusher_left_with_other_times_is_recognised() {
    let mut scene = scene_with_stub();
    let stat = rustix::fs::stat(scene.at("a")).unwrap();
    scene.stage.note_times(stat.st_ino, &super::tracker::attributes(&stat)).unwrap();
    File::options().write(true).open(scene.at("a")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    let stubs = scene.restart();
    assert_eq!(stubs.iter().map(|(inode, _)| *inode).collect::<Vec<_>>(), [stat.st_ino]);
    let restored = rustix::fs::stat(scene.at("a")).unwrap();
    assert_eq!((restored.st_mtime, restored.st_mtime_nsec), (stat.st_mtime, stat.st_mtime_nsec));
}

#[test]
fn times_that_were_noted_for_a_stub_are_given_to_no_other_file() {
    let scene = scene_with_stub();
    let stat = rustix::fs::stat(scene.at("a")).unwrap();
    scene.stage.note_times(stat.st_ino, &super::tracker::attributes(&stat)).unwrap();
    // Another file takes the name after it was looked at.
    fs::remove_file(scene.at("a")).unwrap();
    let times = super::mirror::times(1, 2);
    for mode in [0o644, 0o1644] {
        fs::write(scene.at("b"), b"").unwrap();
        fs::set_permissions(scene.at("b"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let other = rustix::fs::stat(scene.at("b")).unwrap();
        let inode = if mode == 0o644 { other.st_ino } else { other.st_ino + 1 };
        assert!(super::mirror::set_times_of(&scene.at("b"), inode, &times).is_err());
        assert_ne!(rustix::fs::stat(scene.at("b")).unwrap().st_mtime, 1);
    }
    scene.stage.forget_all_times().unwrap();
    assert_eq!(scene.stage.noted_times(stat.st_ino), None);
}

/// What a random program does; names are small numbers, so that collisions are common.
#[derive(Clone, Debug)]
enum Action {
    Write(u8, u16),
    Rename(u8, u8),
    Remove(u8),
    Link(u8, u8),
    Symlink(u8, u8),
    MakeDirectory(u8),
    RenameDirectory(u8, u8),
    RemoveDirectory(u8),
    Evict(u8),
    Publish,
    Restart,
}

fn name_of_any() -> std::ops::Range<u8> {
    0..12
}

fn action() -> impl Strategy<Value = Action> {
    let name = name_of_any();
    let directory = 0..3u8;
    prop_oneof![
        6 => (name.clone(), 0..5000u16).prop_map(|(a, size)| Action::Write(a, size)),
        4 => (name.clone(), name.clone()).prop_map(|(a, b)| Action::Rename(a, b)),
        2 => name.clone().prop_map(Action::Remove),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Action::Link(a, b)),
        1 => (name.clone(), name).prop_map(|(a, b)| Action::Symlink(a, b)),
        2 => directory.clone().prop_map(Action::MakeDirectory),
        1 => (directory.clone(), directory.clone()).prop_map(|(a, b)| Action::RenameDirectory(a, b)),
        1 => directory.prop_map(Action::RemoveDirectory),
        3 => name_of_any().prop_map(Action::Evict),
        3 => Just(Action::Publish),
        1 => Just(Action::Restart),
    ]
}

/// Names 0 to 5 lie in the zone, the others in its three directories.
fn name(number: u8) -> String {
    if number < 6 { format!("f{number}") } else { format!("d{}/f{}", number % 3, number) }
}

fn is_stub(scene: &Scene, name: &str) -> bool {
    fs::metadata(scene.at(name)).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & layout::STUB_BIT != 0)
}

/// Writes a file, through links. A stub is replaced: it would be brought back first.
fn write(scene: &Scene, name: &str, content: &[u8]) {
    if !is_stub(scene, name) {
        return drop(fs::write(scene.at(name), content));
    }
    let aside = scene.stage.path("scratch").join("aside");
    fs::write(&aside, content).unwrap();
    fs::rename(&aside, scene.at(name).canonicalize().unwrap()).unwrap();
}

/// Evicts a file if it is published as it is and holds anything.
fn evict(scene: &mut Scene, name: &str) {
    let path = [ZONE, b"/", name.as_bytes()].concat();
    let resident = scene.tracker.resident(u64::MAX - 1).find(|(held, _, size, _)| **held == path && *size > 0);
    let Some(inode) = resident.map(|(_, inode, ..)| inode) else { return };
    evict_file(scene, &path, inode);
}

/// Evicts a published file. False when it is in use.
pub(super) fn evict_file(scene: &mut Scene, path: &[u8], inode: u64) -> bool {
    let Some(Node::File(version)) = scene.store.view().get(path) else { panic!("the store has no such file") };
    super::mirror::evict(&scene.stage, &mut scene.tracker, path, inode, version).unwrap()
}

fn perform(scene: &mut Scene, action: &Action) {
    // Impossible actions fail as they would for a program; that is part of the game.
    match action {
        Action::Write(a, size) => write(scene, &name(*a), &vec![1; usize::from(*size)]),
        Action::Rename(a, b) => drop(fs::rename(scene.at(&name(*a)), scene.at(&name(*b)))),
        Action::Remove(a) => drop(fs::remove_file(scene.at(&name(*a)))),
        Action::Link(a, b) => {
            if fs::symlink_metadata(scene.at(&name(*a))).is_ok_and(|metadata| metadata.is_file()) {
                link(scene, &name(*a), &name(*b));
            }
        }
        Action::Symlink(a, b) => drop(symlink(name(*a), scene.at(&name(*b)))),
        Action::MakeDirectory(d) => {
            // As the preloaded library does it: complete from the start.
            let mode = rustix::fs::Mode::from_raw_mode(0o700 | sheaf_common::layout::POPULATED_BIT);
            let _ = rustix::fs::mkdir(scene.at(&format!("d{d}")), mode);
        }
        Action::RenameDirectory(a, b) => drop(fs::rename(scene.at(&format!("d{a}")), scene.at(&format!("d{b}")))),
        Action::RemoveDirectory(d) => drop(fs::remove_dir(scene.at(&format!("d{d}")))),
        Action::Evict(a) => evict(scene, &name(*a)),
        Action::Publish => drop(scene.publish()),
        Action::Restart => {
            // A flusher dies; what it had read of the queue and not published dies with it.
            scene.follow();
            scene.restart();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_published_is_what_is_there(actions in proptest::collection::vec(action(), 1..60)) {
        let mut scene = Scene::new();
        let populated = rustix::fs::Mode::from_raw_mode(0o700 | sheaf_common::layout::POPULATED_BIT);
        rustix::fs::chmod(scene.stage.tree_path(ZONE), populated).unwrap();
        for action in &actions {
            perform(&mut scene, action);
        }
        scene.settle();
        let (tree, view) = scene.both();
        prop_assert_eq!(tree, view);
    }
}

#[test]
fn what_took_the_place_of_a_directory_unseen_and_moved_on_leaves_nothing_behind() {
    let mut scene = Scene::new();
    let populated = fs::Permissions::from_mode(0o700 | layout::POPULATED_BIT);
    fs::set_permissions(scene.at("."), populated).unwrap();
    fs::create_dir(scene.at("f")).unwrap();
    fs::write(scene.at("f/c"), b"1").unwrap();
    fs::write(scene.at("g"), b"333").unwrap();
    scene.check();
    fs::rename(scene.at("f"), scene.at("d")).unwrap();
    fs::write(scene.at("f"), b"22").unwrap();
    fs::remove_file(scene.at("g")).unwrap();
    fs::create_dir(scene.at("g")).unwrap();
    // The flusher dies before it has looked at its queue.
    scene.restart();
    fs::rename(scene.at("f"), scene.at("h")).unwrap();
    fs::rename(scene.at("g"), scene.at("i")).unwrap();
    scene.check();
}

#[test]
fn a_stub_that_moved_unseen_is_found_though_a_directory_took_its_name() {
    let mut scene = scene_with_stub();
    fs::rename(scene.at("a"), scene.at("b")).unwrap();
    fs::create_dir(scene.at("a")).unwrap();
    let inode = fs::metadata(scene.at("b")).unwrap().ino();
    let stubs = scene.restart();
    assert_eq!(stubs.iter().map(|(inode, _)| *inode).collect::<Vec<_>>(), [inode]);
    scene.check();
}

#[test]
fn both_names_of_a_stub_that_moved_unseen_are_found() {
    let mut scene = Scene::new();
    for name in ["d", "e"] {
        fs::create_dir(scene.at(name)).unwrap();
    }
    fs::write(scene.at("d/a"), b"data").unwrap();
    scene.check();
    let (inode, path) = (fs::metadata(scene.at("d/a")).unwrap().ino(), [ZONE, b"/d/a"].concat());
    assert!(evict_file(&mut scene, &path, inode));
    fs::hard_link(scene.at("d/a"), scene.at("d/b")).unwrap();
    scene.settle();
    fs::rename(scene.at("d/a"), scene.at("e/x")).unwrap();
    fs::rename(scene.at("d/b"), scene.at("e/y")).unwrap();
    fs::hard_link(scene.at("e/x"), scene.at("e/z")).unwrap();
    assert!(scene.restart().iter().any(|(known, _)| *known == inode));
    scene.check();
    let names = scene.store.view().names(scene.store.view().get(b"s/e/x").unwrap());
    assert_eq!(names.len(), 3, "{names:?}");
}

/// Three stubs that are rotated, as by a program that was restarted and keeps three checkpoints: `state.0` is one byte
/// long, `state.1` two, `state.2` three.
fn scene_of_rotation() -> Scene {
    let mut scene = Scene::new();
    for length in 1..=3 {
        fs::write(scene.at(&format!("state.{}", length - 1)), vec![1; length]).unwrap();
    }
    scene.check();
    for number in 0..3 {
        let name = format!("state.{number}");
        let inode = fs::metadata(scene.at(&name)).unwrap().ino();
        let path = [ZONE, b"/", name.as_bytes()].concat();
        assert!(evict_file(&mut scene, &path, inode));
    }
    scene.settle();
    scene
}

/// One turn of the rotation; `state.2` is then two bytes long, and `state.1` one.
fn rotate(scene: &Scene) {
    fs::rename(scene.at("state.1"), scene.at("state.2")).unwrap();
    fs::rename(scene.at("state.0"), scene.at("state.1")).unwrap();
    fs::write(scene.at("state.0"), b"four").unwrap();
}

/// Every stub's version is known, also to the next flusher.
fn assert_rotated(mut scene: Scene) {
    scene.check();
    assert_eq!(scene.restart().len(), 2);
    scene.check();
}

#[test]
fn stubs_that_are_rotated_while_the_tree_is_scanned_keep_their_data() {
    let mut scene = scene_of_rotation();
    scene.tracker.apply_all(vec![Change::Overflow]).unwrap();
    scene.tracker.forget_files();
    // Nothing of it is read before the scan looks at the tree.
    rotate(&scene);
    scene.tracker.rescan(&scene.store).unwrap();
    assert_rotated(scene);
}

#[test]
fn a_move_behind_events_that_were_dropped_takes_no_stub_s_place() {
    let mut scene = scene_of_rotation();
    fs::rename(scene.at("state.1"), scene.at("state.2")).unwrap();
    scene.tracker.drain().unwrap();
    scene.tracker.apply_all(vec![Change::Overflow]).unwrap();
    fs::rename(scene.at("state.0"), scene.at("state.1")).unwrap();
    fs::write(scene.at("state.0"), b"four").unwrap();
    assert_rotated(scene);
}

/// As by `cp -p` or `rsync -t`, while no flusher runs: size and time of modification are those of what is published.
#[test]
fn a_file_of_the_same_size_and_time_is_not_taken_for_what_is_published() {
    let mut scene = Scene::new();
    let write_as_old = |scene: &Scene, name: &str, byte: u8| {
        fs::write(scene.at(name), [byte; 100]).unwrap();
        let file = File::options().write(true).open(scene.at(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
    };
    write_as_old(&scene, "rewritten", 1);
    write_as_old(&scene, "replaced", 1);
    // Old enough that the change time is recorded.
    std::thread::sleep(std::time::Duration::from_millis(50));
    scene.check();
    write_as_old(&scene, "rewritten", 2);
    write_as_old(&scene, "new", 2);
    fs::rename(scene.at("new"), scene.at("replaced")).unwrap();
    scene.restart();
    assert!(!scene.tracker.is_clean(b"s/rewritten") && !scene.tracker.is_clean(b"s/replaced"));
    scene.check();
}
