//! Stores on a real file system, and the view against a plain model of a file system.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::aggregate::tests::{Builder, entry, file, pattern};
use crate::aggregate::{CHUNK, Entry, Extent, Index, Stop, recover};

fn write(directory: &Path, name: &str, builder: &Builder) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, builder.finished()).unwrap();
    path
}

fn read(store: &Store, path: &str) -> io::Result<Vec<u8>> {
    let Some(Node::File(version)) = store.view().get(path.as_bytes()) else { panic!("{path} is no file") };
    let mut bytes = vec![0; version.size as usize];
    store.reader(version)?.copy(&mut |offset, data| {
        bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    })?;
    Ok(bytes)
}

fn names(store: &Store) -> Vec<String> {
    let is_leaf = |node: &Node| !matches!(node, Node::Directory(_));
    let leaves = store.view().iter().filter(|(_, node)| is_leaf(node));
    leaves.map(|(path, _)| String::from_utf8(path).unwrap()).collect()
}

fn set(path: &str, mode: u32, time_ns: u64) -> (Entry, Vec<u8>) {
    let mut entry = entry(Kind::SetAttributes, path, "", time_ns);
    entry.0.attributes.mode = mode;
    entry
}

#[test]
fn a_missing_store_is_empty() {
    let store = Store::open(Path::new("/nonexistent/store")).unwrap();
    assert_eq!(store.view().iter().count(), 0);
    assert_eq!(store.view().get(b""), Some(&Node::Directory(Directory::default())));
}

#[test]
fn the_namespace_follows_the_operations() {
    let directory = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(1);
    builder.segment(vec![file("run/tmp/a", b"one", 1), file("run/tmp/b", b"two", 2), file("run/c", b"old", 3)]);
    builder.segment(vec![
        entry(Kind::HardLink, "run/l", "run/tmp/a", 4),
        entry(Kind::Rename, "run/tmp", "run/step1", 5),
        entry(Kind::Rename, "run/step1/b", "run/c", 6),
        entry(Kind::Symlink, "run/latest", "step1", 7),
        set("run/l", 0o400, 8),
        entry(Kind::Unlink, "run/none", "", 9),
        entry(Kind::RemoveDirectory, "run/step1", "", 10),
    ]);
    write(directory.path(), "n-1.tar", &builder);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(names(&store), ["run/c", "run/l", "run/latest", "run/step1/a"]);
    assert_eq!(read(&store, "run/c").unwrap(), b"two");
    assert_eq!(read(&store, "run/step1/a").unwrap(), b"one");
    let (Some(Node::File(first)), Some(Node::File(second))) =
        (store.view().get(b"run/l"), store.view().get(b"run/step1/a"))
    else {
        panic!("both are files")
    };
    assert!(Arc::ptr_eq(first, second));
    assert_eq!(first.attributes.mode, 0o400);
    assert_eq!(store.view().newest_operation_time_ns(), 10);
    assert_eq!(store.view().older(b"run/c").next().unwrap().operation_time_ns, 3);
    let children: Vec<_> = store.view().children(b"run").map(|(name, _)| name.to_vec()).collect();
    assert_eq!(children, [&b"c"[..], b"l", b"latest", b"step1"]);
    assert_eq!(store.view().children(b"run/c").count() + store.view().children(b"no").count(), 0);
}

#[test]
fn aggregates_are_merged_by_time_and_each_keeps_its_order() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Builder::new(1), Builder::new(2));
    first.segment(vec![file("x", b"1", 10), file("y", b"3", 30)]);
    second.segment(vec![file("x", b"2", 20), file("y", b"2", 20)]);
    // The clock was set back: still after what came before it.
    first.segment(vec![entry(Kind::Rename, "y", "z", 5)]);
    write(directory.path(), "b.tar", &first);
    write(directory.path(), "a.tar", &second);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(names(&store), ["x", "z"]);
    assert_eq!(read(&store, "x").unwrap(), b"2");
    assert_eq!(read(&store, "z").unwrap(), b"3");
}

#[test]
fn refreshing_takes_in_what_is_new_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Builder::new(1);
    first.segment(vec![file("x", b"1", 10)]);
    write(directory.path(), "a.tar", &first);
    let mut store = Store::open(directory.path()).unwrap();
    first.segment(vec![file("x", b"3", 30), file("y", b"3", 31)]);
    write(directory.path(), "a.tar", &first);
    store.refresh().unwrap();
    assert_eq!(read(&store, "x").unwrap(), b"3");
    // Another node's aggregate turns up late, with something older.
    let mut second = Builder::new(2);
    second.segment(vec![file("x", b"2", 20), file("w", b"2", 21)]);
    write(directory.path(), "b.tar", &second);
    store.refresh().unwrap();
    assert_eq!(names(&store), ["w", "x", "y"]);
    assert_eq!(read(&store, "x").unwrap(), b"3");
    store.refresh().unwrap();
    assert_eq!(names(&store).len(), 3);
}

#[test]
fn what_is_spooled_counts_in_its_place_until_the_store_has_it() {
    let (directory, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut stored, mut other) = (Builder::new(1), Builder::new(2));
    stored.segment(vec![file("run/a", b"first", 10), file("run/b", b"kept", 11)]);
    other.segment(vec![file("run/c", b"theirs", 40)]);
    write(directory.path(), "n-1.tar", &stored);
    write(directory.path(), "o-1.tar", &other);
    let segments = [
        vec![entry(Kind::Unlink, "run/b", "", 30), file("run/a", b"third", 31)],
        vec![file("run/a", b"second", 20), file("run/c", b"ours", 21), entry(Kind::Rename, "run/b", "run/d", 22)],
    ];
    let files: Vec<PathBuf> = (3..)
        .zip(&segments)
        .map(|(number, items)| {
            let mut builder = Builder::new(number);
            builder.segment(items.clone());
            write(spool.path(), &format!("n-{number}.tar"), &builder)
        })
        .collect();
    let open = || Store::open_with_spool(directory.path(), [9; 16], &files).unwrap();
    let contents = |store: &Store| ["run/a", "run/c", "run/d"].map(|path| read(store, path).unwrap());
    let (store, waiting) = open();
    let paths = |waiting: &[SpooledSegment]| waiting.iter().map(|segment| segment.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&waiting), [files[1].clone(), files[0].clone()], "oldest first");
    assert_eq!(contents(&store), [&b"third"[..], b"theirs", b"kept"]);
    assert_eq!(waiting[0].copies().len(), 3);
    assert_eq!(store.candidates(None).len(), 2, "nobody reclaims what is spooled");
    // A flusher has copied the older one, and died.
    stored.segment(segments[1].clone());
    write(directory.path(), "n-1.tar", &stored);
    let (store, waiting) = open();
    assert_eq!(paths(&waiting), [files[0].clone()]);
    assert_eq!(contents(&store), [&b"third"[..], b"theirs", b"kept"]);
    stored.segment(segments[0].clone());
    write(directory.path(), "n-1.tar", &stored);
    let (store, waiting) = open();
    assert!(waiting.is_empty());
    assert_eq!(contents(&store), [&b"third"[..], b"theirs", b"kept"]);
}

#[test]
fn a_damaged_aggregate_does_not_hide_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Builder::new(1), Builder::new(2));
    first.segment(vec![file("x", b"1", 10)]);
    first.segment(vec![file("y", b"1", 11)]);
    second.segment(vec![file("z", b"2", 20)]);
    let path = write(directory.path(), "a.tar", &first);
    write(directory.path(), "b.tar", &second);
    fs::write(directory.path().join("other.tar"), pattern(10_240)).unwrap();
    fs::write(directory.path().join("new.tar"), b"").unwrap();
    fs::write(directory.path().join("notes.txt"), b"").unwrap();
    let last = first.published[1].offset + first.published[1].length - 1;
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xaa], last).unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(names(&store), ["x", "z"]);
    let notes: Vec<_> =
        store.notes().iter().map(|note| (note.path.file_name().unwrap().to_owned(), note.damaged)).collect();
    assert_eq!(notes, [("a.tar".into(), true), ("other.tar".into(), false)]);
}

#[test]
fn damaged_data_is_never_handed_out_and_an_older_version_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let size = CHUNK as usize + 9000;
    let mut builder = Builder::new(1);
    builder.segment(vec![file("x", &pattern(size), 10)]);
    builder.segment(vec![file("x", &pattern(size + 1), 20)]);
    let path = write(directory.path(), "a.tar", &builder);
    let store = Store::open(directory.path()).unwrap();
    let Some(Node::File(version)) = store.view().get(b"x").cloned() else { panic!("x is a file") };
    let damage = |offset| fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0], offset).unwrap();
    damage(version.data_offset + CHUNK + 5);
    let mut handed_out = 0;
    let reader = store.reader(&version).unwrap();
    let error = reader.copy(&mut |offset, bytes| {
        assert_eq!((offset, bytes), (handed_out, &pattern(size)[..CHUNK as usize]));
        handed_out += bytes.len() as u64;
        Ok(())
    });
    let error = error.unwrap_err();
    assert_eq!((handed_out, error.kind()), (CHUNK, io::ErrorKind::InvalidData));
    assert!(error.to_string().contains("an older intact version of it, of 0.000000010 s since 1970"), "{error}");
    let older = store.view().older(b"x").next().unwrap().data_offset;
    damage(older + 5);
    let error = reader.copy(&mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no older intact version"), "{error}");
}

#[test]
fn holes_are_not_handed_out() {
    let directory = tempfile::tempdir().unwrap();
    let size = 3 * CHUNK + 100;
    let (mut sparse, mut content) = file("s", &vec![0; size as usize], 1);
    sparse.extents =
        [(4096, 4096), (3 * CHUNK, 100)].map(|(offset, length)| Extent { offset, length }).into_iter().collect();
    for extent in &sparse.extents {
        content[extent.offset as usize..(extent.offset + extent.length) as usize].fill(7);
    }
    let mut builder = Builder::new(1);
    builder.segment(vec![(sparse, content.clone())]);
    write(directory.path(), "a.tar", &builder);
    let store = Store::open(directory.path()).unwrap();
    let Some(Node::File(version)) = store.view().get(b"s") else { panic!("s is a file") };
    let mut ranges = Vec::new();
    store
        .reader(version)
        .unwrap()
        .copy(&mut |offset, bytes| {
            ranges.push((offset, bytes.len()));
            Ok(())
        })
        .unwrap();
    assert_eq!(ranges, [(4096, 4096), (3 * CHUNK, 100)]);
    assert_eq!(read(&store, "s").unwrap(), content);
}

#[test]
fn what_this_process_publishes_is_seen_and_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    let mut builder = Builder::new(1);
    let path = write(directory.path(), "a.tar", &builder);
    let id = store.add_own(&path, None, &builder.identity).unwrap();
    builder.segment(vec![
        file("run/a", &pattern(40_000), 1),
        file("run/b", b"b", 2),
        entry(Kind::Directory, "run", "", 3),
    ]);
    builder.segment(vec![entry(Kind::Rename, "run/b", "run/c", 4), entry(Kind::Symlink, "run/l", "c", 5)]);
    write(directory.path(), "a.tar", &builder);
    for segment in builder.published.clone() {
        store.publish(id, &segment);
    }
    assert_eq!(names(&store), ["run/a", "run/c", "run/l"]);
    assert_eq!(read(&store, "run/a").unwrap(), pattern(40_000));
    store.refresh().unwrap();
    let end = builder.bytes.len() as u64;
    let sealed =
        store.seal_segment(id, &builder.identity, (builder.sequence, end), Entry::watermark(0, FLAG_ENDED)).unwrap();
    assert!((sealed.bytes.len() as u64).is_multiple_of(BLOCK));
    builder.bytes.extend_from_slice(&sealed.bytes);
    assert_eq!(recover(&builder.finished()).unwrap().stop, Stop::Unpublished);
    assert_eq!(recover(&builder.finished()).unwrap().published_end, end);
    builder.bytes[end as usize..end as usize + sealed.head.len()].copy_from_slice(&sealed.head);
    let index = Index::read(&builder.finished(), builder.identity.uuid).unwrap().unwrap();
    assert_eq!((index.len(), index.published_end()), (4, end));
    let entry = index.get(b"run/c").unwrap();
    assert_eq!(builder.bytes[entry.data_offset as usize], b'b');
    assert_eq!(index.get(b"run/l").unwrap().target, b"c");
    write(directory.path(), "a.tar", &builder);
    assert_eq!(names(&Store::open(directory.path()).unwrap()), names(&store));
}

/// A file system as one map from path to what is there: slow and plain.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Leaf>,
}

#[derive(Clone, Debug, PartialEq)]
enum Leaf {
    /// Number of the version.
    File(u64),
    Symlink(String),
    Directory,
}

impl Model {
    fn make_parents(&mut self, path: &str) {
        for (index, _) in path.match_indices('/') {
            let place = self.nodes.entry(path[..index].to_owned()).or_insert(Leaf::Directory);
            *place = Leaf::Directory;
        }
    }

    fn clear(&mut self, path: &str) {
        self.nodes.retain(|name, _| name != path && !name.starts_with(&format!("{path}/")));
    }

    fn put(&mut self, path: &str, leaf: Leaf) {
        self.make_parents(path);
        self.clear(path);
        self.nodes.insert(path.to_owned(), leaf);
    }

    fn has_children(&self, path: &str) -> bool {
        self.nodes.keys().any(|name| name.starts_with(&format!("{path}/")))
    }

    fn apply(&mut self, kind: Kind, path: &str, target: &str, number: u64) {
        match (kind, self.nodes.get(path).cloned()) {
            (Kind::File, _) => self.put(path, Leaf::File(number)),
            (Kind::Symlink, _) => self.put(path, Leaf::Symlink(target.to_owned())),
            (Kind::Directory, Some(Leaf::Directory)) => {}
            (Kind::Directory, _) => self.put(path, Leaf::Directory),
            (Kind::HardLink, _) if path != target => match self.nodes.get(target).cloned() {
                None | Some(Leaf::Directory) => {}
                Some(leaf) => self.put(path, leaf),
            },
            (Kind::Rename, Some(leaf)) => self.rename(path, target, &leaf),
            (Kind::Unlink, Some(Leaf::File(_) | Leaf::Symlink(_))) => self.clear(path),
            (Kind::RemoveDirectory, Some(Leaf::Directory)) if !self.has_children(path) => self.clear(path),
            _ => {}
        }
    }

    fn rename(&mut self, from: &str, to: &str, leaf: &Leaf) {
        if to == from || to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) {
            return;
        }
        self.make_parents(to);
        let below = format!("{from}/");
        let moved: Vec<(String, Leaf)> = self
            .nodes
            .iter()
            .filter(|(name, _)| name.starts_with(&below))
            .map(|(name, leaf)| (format!("{to}/{}", &name[below.len()..]), leaf.clone()))
            .collect();
        self.clear(from);
        self.clear(to);
        self.nodes.insert(to.to_owned(), leaf.clone());
        self.nodes.extend(moved);
    }
}

fn leaf(node: &Node) -> Leaf {
    match node {
        Node::File(version) => Leaf::File(version.operation_time_ns),
        Node::Symlink(link) => Leaf::Symlink(String::from_utf8(link.target.to_vec()).unwrap()),
        Node::Directory(_) => Leaf::Directory,
    }
}

fn operations() -> impl Strategy<Value = Vec<(Kind, String, String)>> {
    let kind = prop::sample::select(vec![
        Kind::File,
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::HardLink,
        Kind::Rename,
        Kind::Rename,
        Kind::Unlink,
        Kind::RemoveDirectory,
        Kind::SetAttributes,
    ]);
    let name = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"));
    prop::collection::vec((kind, name.clone(), name), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_view_is_what_a_file_system_would_be(operations in operations()) {
        let (mut view, mut model) = (View::default(), Model::default());
        for (number, (kind, path, target)) in operations.iter().enumerate() {
            let number = number as u64 + 1;
            let (entry, _) = if *kind == Kind::File { file(path, b"", number) } else { entry(*kind, path, target, number) };
            let checksums = (*kind == Kind::File).then(Default::default);
            let data_offset = (*kind == Kind::File).then_some(0);
            let record = Record { entry, sequence: number, header: None, hidden: false, data_offset, checksums };
            view.apply(AggregateId(0), 0, &record);
            model.apply(*kind, path, target, number);
            let found: BTreeMap<String, Leaf> =
                view.iter().map(|(path, node)| (String::from_utf8(path).unwrap(), leaf(node))).collect();
            prop_assert_eq!(&found, &model.nodes, "after {:?} {} {}", kind, path, target);
        }
        for path in model.nodes.keys() {
            prop_assert_eq!(view.get(path.as_bytes()).map(leaf), model.nodes.get(path).cloned());
            let prefix = format!("{path}/");
            let direct = model.nodes.keys().filter_map(|name| name.strip_prefix(&prefix)).filter(|rest| !rest.contains('/'));
            let children = view.children(path.as_bytes()).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap());
            prop_assert!(children.eq(direct.map(str::to_owned)));
        }
    }
}

#[test]
fn a_large_directory_is_renamed_and_removed_at_once() {
    let mut view = View::default();
    let mut apply = |(entry, _): (Entry, Vec<u8>), number: u64| {
        let (checksums, data_offset) = (Some(Default::default()), Some(0));
        view.apply(
            AggregateId(0),
            0,
            &Record { entry, sequence: number, header: None, hidden: false, data_offset, checksums },
        );
    };
    for number in 0..100_000 {
        apply(file(&format!("run/tmp/r{number}"), b"", number), number);
    }
    for number in 100_000..200_000 {
        let names = ["run/tmp", "run/done"];
        let (from, to) = (names[number as usize % 2], names[(number as usize + 1) % 2]);
        apply(entry(Kind::Rename, from, to, number), number);
    }
    assert_eq!(view.children(b"run/tmp").count(), 100_000);
    assert_eq!(view.iter().count(), 100_002);
}
