//! Populating a wiped stage, and evicting what is published.

use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::io::Errno;
use sheaf_common::layout::{self, POPULATED_BIT, STUB_BIT};
use sheaf_common::replaced::Marker;

use super::mirror::{self, Extent};
use super::tracker::Stubs;
use super::tracker_tests::{Scene, evict_file, stage_at};
use crate::store::Node;

/// A scene whose zone is a real directory, as on a parallel file system, and that directory.
fn scene() -> (Scene, Vec<u8>, PathBuf) {
    let tier = tempfile::tempdir_in("/dev/shm").unwrap();
    let real = tier.path().join("real");
    fs::create_dir(&real).unwrap();
    let zone = real.as_os_str().as_bytes()[1..].to_vec();
    (Scene::with_zone(tier, zone.clone()), zone, real)
}

/// Has a directory populated; yields the stubs.
fn populate(scene: &mut Scene, zone: &[u8], directory: &[u8]) -> Result<Stubs, Errno> {
    populate_all(scene, zone, directory, Extent::Directory)
}

fn populate_all(scene: &mut Scene, zone: &[u8], directory: &[u8], extent: Extent) -> Result<Stubs, Errno> {
    let (zones, mut stubs) = ([zone.to_vec()], Stubs::new());
    let (stage, view) = (&scene.stage, scene.store.view());
    mirror::populate(stage, &mut scene.tracker, &zones, view, (directory, extent), &mut stubs).map(|()| stubs)
}

/// As after the loss of the node: an empty tree that nobody has looked at.
fn wipe(scene: &mut Scene) {
    fs::remove_dir_all(scene.stage.path(layout::TREE)).unwrap();
    scene.stage = stage_at(scene.stage.directory());
    scene.restart();
}

#[test]
fn a_populated_mirror_shows_everything_and_holds_no_data() {
    let (mut scene, zone, _) = scene();
    fs::write(scene.at("a"), vec![1; 10_000]).unwrap();
    fs::set_permissions(scene.at("a"), Permissions::from_mode(0o640)).unwrap();
    symlink("a", scene.at("latest")).unwrap();
    fs::hard_link(scene.at("a"), scene.at("b")).unwrap();
    fs::write(scene.at("empty"), b"").unwrap();
    scene.check();
    let before = fs::metadata(scene.at("a")).unwrap();
    wipe(&mut scene);
    let stubs = populate(&mut scene, &zone, &zone).unwrap();
    let stub = fs::metadata(scene.at("a")).unwrap();
    assert_eq!((stub.len(), stub.blocks(), stub.mode() & 0o7777), (10_000, 0, 0o640 | STUB_BIT));
    assert_eq!((stub.mtime(), stub.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(fs::metadata(scene.at("b")).unwrap().ino(), stub.ino());
    assert_eq!(fs::read_link(scene.at("latest")).unwrap(), PathBuf::from("a"));
    assert_eq!(fs::metadata(scene.at("empty")).unwrap().mode() & STUB_BIT, 0, "nothing is missing in an empty file");
    assert_eq!(fs::metadata(scene.at(".")).unwrap().mode() & POPULATED_BIT, POPULATED_BIT);
    assert!(stubs.iter().any(|(inode, version)| *inode == stub.ino() && version.size == 10_000));
    // Populating is no change of the program's: nothing is to be published.
    scene.follow();
    assert_eq!(scene.tracker.first_position(), None);
}

#[test]
fn a_file_of_several_names_has_them_all_and_what_is_written_through_one_is_published_under_all() {
    let (mut scene, zone, _) = scene();
    for directory in ["x", "y"] {
        fs::create_dir(scene.at(directory)).unwrap();
    }
    fs::write(scene.at("x/a"), b"old").unwrap();
    fs::hard_link(scene.at("x/a"), scene.at("y/b")).unwrap();
    scene.check();
    wipe(&mut scene);
    let path = [&zone, &b"/x"[..]].concat();
    populate(&mut scene, &zone, &path).unwrap();
    assert_eq!(fs::metadata(scene.at("x/a")).unwrap().nlink(), 2);
    scene.follow();
    // As after a hydration: the data is there and the mark is gone.
    fs::set_permissions(scene.at("x/a"), Permissions::from_mode(0o600)).unwrap();
    fs::write(scene.at("x/a"), b"new data").unwrap();
    fs::remove_file(scene.at("x/a")).unwrap();
    scene.check();
}

#[test]
fn what_was_only_brought_back_is_not_published_again_by_the_next_flusher() {
    let (mut scene, zone, _) = scene();
    fs::write(scene.at("kept"), b"data").unwrap();
    fs::write(scene.at("changed"), b"data").unwrap();
    scene.check();
    wipe(&mut scene);
    populate(&mut scene, &zone, &zone).unwrap();
    for name in ["kept", "changed"] {
        let Some(Node::File(version)) = scene.store.view().get(&[&zone[..], b"/", name.as_bytes()].concat()) else {
            panic!("{name} is gone")
        };
        // As a hydration does it.
        let file = File::options().write(true).open(scene.at(name)).unwrap();
        std::io::Write::write_all(&mut &file, b"data").unwrap();
        super::mirror::restore(&file, &version.attributes, false).unwrap();
        drop(file);
    }
    drop(scene.tracker.drain().unwrap());
    // Older than the grain of the kernel's time stamps.
    std::thread::sleep(std::time::Duration::from_millis(30));
    scene.tracker.write_proofs(scene.store.view()).unwrap();
    fs::write(scene.at("changed"), b"atad").unwrap();
    scene.restart();
    let batch = scene.publish();
    let names: Vec<_> = batch.entries.iter().map(|entry| entry.path.clone()).collect();
    assert_eq!(names, [[&zone, &b"/changed"[..]].concat()]);
}

#[test]
fn directories_are_populated_from_the_zone_down() {
    let (mut scene, zone, real) = scene();
    fs::create_dir_all(real.join("x/y")).unwrap();
    wipe(&mut scene);
    let mut ask = |directory: &str| {
        let path = [&zone, directory.as_bytes()].concat();
        populate(&mut scene, &zone, &path).map(drop)
    };
    assert_eq!(ask("/none"), Err(Errno::NOENT));
    assert_eq!(ask("beside"), Err(Errno::INVAL));
    assert_eq!(ask("/x/y"), Ok(()));
    for directory in [".", "x", "x/y"] {
        assert_eq!(fs::metadata(scene.at(directory)).unwrap().mode() & 0o7777, 0o700 | POPULATED_BIT, "{directory}");
    }
}

#[test]
fn a_store_that_was_moved_brings_its_directories_along() {
    let (mut scene, zone, real) = scene();
    fs::create_dir(scene.at("step1")).unwrap();
    fs::write(scene.at("step1/r0"), b"data").unwrap();
    scene.check();
    wipe(&mut scene);
    assert!(!real.join("step1").exists());
    let path = [&zone, &b"/step1"[..]].concat();
    populate(&mut scene, &zone, &path).unwrap();
    assert!(real.join("step1").is_dir());
    assert_eq!(fs::metadata(scene.at("step1/r0")).unwrap().len(), 4);
}

#[test]
fn of_two_files_of_one_name_the_newer_counts() {
    let (mut scene, zone, real) = scene();
    fs::write(scene.at("older-outside"), b"held").unwrap();
    fs::write(scene.at("newer-outside"), b"held").unwrap();
    fs::write(real.join("older-outside"), b"x").unwrap();
    File::options().write(true).open(real.join("older-outside")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    scene.check();
    wipe(&mut scene);
    fs::write(real.join("newer-outside"), b"x").unwrap();
    populate(&mut scene, &zone, &zone).unwrap();
    assert!(fs::symlink_metadata(scene.at("older-outside")).is_ok());
    assert!(fs::symlink_metadata(scene.at("newer-outside")).is_err());
    let markers = scene.stage.replaced().unwrap();
    let [marker] = &markers[..] else { panic!("{markers:?}") };
    let marker = Marker::parse(marker).unwrap();
    assert_eq!(marker.path, real.join("older-outside").as_os_str().as_bytes());
    assert!(marker.is_found);
}

#[test]
fn only_clean_closed_files_are_evicted() {
    let (mut scene, zone, _) = scene();
    fs::write(scene.at("a"), vec![1; 100_000]).unwrap();
    scene.check();
    let path = [&zone, &b"/a"[..]].concat();
    let inode = fs::metadata(scene.at("a")).unwrap().ino();
    assert_eq!(scene.tracker.resident_bytes(), 100_000);

    let reader = File::open(scene.at("a")).unwrap();
    assert!(!evict_file(&mut scene, &path, inode), "a program has it open");
    drop(reader);
    fs::write(scene.at("a"), vec![2; 100_000]).unwrap();
    assert!(!evict_file(&mut scene, &path, inode), "it has changed");
    scene.settle();
    let before = fs::metadata(scene.at("a")).unwrap();
    assert!(evict_file(&mut scene, &path, inode));
    let stub = fs::metadata(scene.at("a")).unwrap();
    assert_eq!((stub.len(), stub.blocks(), stub.ino()), (100_000, 0, inode));
    assert_eq!((stub.mtime(), stub.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(scene.tracker.resident_bytes(), 0);
    // Evicting is no change of the program's.
    scene.settle();
    assert_eq!(scene.tracker.first_position(), None);
}

#[test]
fn a_file_with_names_in_two_directories_is_one_file_again() {
    let (mut scene, zone, real) = scene();
    for directory in ["x", "y"] {
        fs::create_dir(real.join(directory)).unwrap();
        fs::create_dir(scene.at(directory)).unwrap();
    }
    fs::write(scene.at("x/a"), b"data").unwrap();
    fs::hard_link(scene.at("x/a"), scene.at("y/b")).unwrap();
    symlink("a", scene.at("x/l")).unwrap();
    fs::hard_link(scene.at("x/l"), scene.at("y/l")).unwrap();
    scene.check();
    wipe(&mut scene);
    for directory in [&b"/x"[..], b"/y"] {
        let path = [&zone, directory].concat();
        populate(&mut scene, &zone, &path).unwrap();
    }
    for (one, other) in [("x/a", "y/b"), ("x/l", "y/l")] {
        let inode = |name: &str| fs::symlink_metadata(scene.at(name)).unwrap().ino();
        assert_eq!(inode(one), inode(other), "{one} {other}");
    }
}

#[test]
fn stubs_that_changed_places_unseen_keep_their_data() {
    let (mut scene, zone, _) = scene();
    fs::write(scene.at("a"), b"1").unwrap();
    fs::write(scene.at("b"), b"22").unwrap();
    scene.check();
    wipe(&mut scene);
    populate(&mut scene, &zone, &zone).unwrap();
    let inodes = ["a", "b"].map(|name| fs::metadata(scene.at(name)).unwrap().ino());
    for (from, to) in [("a", "t"), ("b", "a"), ("t", "b")] {
        fs::rename(scene.at(from), scene.at(to)).unwrap();
    }
    // The flusher dies before it has looked at its queue.
    let stubs = scene.restart();
    let size = |inode: u64| stubs.iter().find(|(stub, _)| *stub == inode).map(|(_, version)| version.size);
    assert_eq!(inodes.map(size), [Some(1), Some(2)]);
    scene.settle();
    let sizes = ["a", "b"].map(|name| match scene.store.view().get(&[&zone, &b"/"[..], name.as_bytes()].concat()) {
        Some(crate::store::Node::File(version)) => version.size,
        _ => panic!("{name} is gone"),
    });
    assert_eq!(sizes, [2, 1]);
}

#[test]
fn a_directory_is_populated_with_all_that_is_below_it() {
    let (mut scene, zone, real) = scene();
    fs::create_dir_all(real.join("one/two/three")).unwrap();
    fs::create_dir_all(scene.at("one/two/three")).unwrap();
    fs::write(scene.at("one/two/three/deep"), b"data").unwrap();
    scene.check();
    wipe(&mut scene);
    let one = [&zone[..], b"/one"].concat();
    assert_eq!(populate(&mut scene, &zone, &one).unwrap().len(), 0);
    assert!(!scene.at("one/two").exists());
    assert_eq!(populate_all(&mut scene, &zone, &one, Extent::Subtree).unwrap().len(), 1);
    assert!(scene.at("one/two/three/deep").exists());
    // What was removed does not come back.
    fs::remove_file(scene.at("one/two/three/deep")).unwrap();
    for side in [scene.at("one/two/three"), real.join("one/two/three")] {
        fs::remove_dir(side).unwrap();
    }
    populate_all(&mut scene, &zone, &one, Extent::Subtree).unwrap();
    assert!(!real.join("one/two/three").exists());
}

#[test]
fn stubs_that_were_made_before_populating_failed_are_known() {
    let (mut scene, zone, real) = scene();
    fs::write(scene.at("a"), b"data").unwrap();
    scene.check();
    wipe(&mut scene);
    fs::write(real.join("file"), b"").unwrap();
    let (zones, mut stubs) = ([zone.clone()], Stubs::new());
    let (stage, view) = (&scene.stage, scene.store.view());
    let below = (&[&zone[..], b"/file"].concat()[..], Extent::Directory);
    let outcome = mirror::populate(stage, &mut scene.tracker, &zones, view, below, &mut stubs);
    assert_eq!(outcome, Err(Errno::NOTDIR));
    assert_eq!(stubs.len(), 1);
}
