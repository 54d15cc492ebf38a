//! A store that is refreshed while it is used against one that is read from the disk: random histories of three nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::RwLock;
use proptest::prelude::*;

use super::*;
use crate::aggregate::tests::{Builder, entry, file};
use crate::aggregate::{Entry, recover};

/// One node's aggregate, and what it has not published yet.
struct Writing {
    path: PathBuf,
    builder: Builder,
    waiting: Vec<(Entry, Vec<u8>)>,
}

impl Writing {
    fn new(directory: &Path, number: u8) -> Writing {
        let mut builder = Builder::new(number);
        builder.identity.node = format!("node{number}");
        builder.identity.stage = [number; 16];
        let writing = Writing { path: directory.join(format!("n{number}.tar")), builder, waiting: Vec::new() };
        writing.save();
        writing
    }

    fn save(&self) {
        fs::write(&self.path, self.builder.finished()).unwrap();
    }

    fn publish(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.builder.segment(waiting);
            self.save();
        }
    }

    /// Half of a segment behind what is published.
    fn tear(&self, cut: usize) {
        let mut torn = Builder::new(self.builder.identity.uuid[0]);
        torn.identity = self.builder.identity.clone();
        torn.segment(vec![file("torn", &[7; 5000], 1)]);
        let (whole, published) = (torn.finished(), self.builder.finished());
        let segment = &whole[BLOCK as usize..];
        let mut bytes = published;
        bytes.extend_from_slice(&vec![0; BLOCK as usize]);
        bytes.extend_from_slice(&segment[(BLOCK as usize).min(cut)..cut.min(segment.len())]);
        fs::write(&self.path, bytes).unwrap();
    }
}

fn shown(store: &Store) -> Vec<String> {
    let text = |(path, node): (Vec<u8>, &Node)| match node {
        Node::File(version) => {
            let mut names = store.view().names(node);
            names.sort();
            let names = if names.len() > 1 { names } else { Vec::new() };
            let (time_ns, mode) = (version.operation_time_ns, version.attributes.mode);
            format!("{path:?} file {time_ns} {mode:?} {names:?} {}", version.is_contested())
        }
        Node::Symlink(link) => format!("{path:?} link {} {:?}", link.operation_time_ns, link.attributes.mode),
        Node::Directory(Directory { recorded }) => {
            format!("{path:?} directory {:?}", recorded.as_ref().map(|recorded| recorded.operation_time_ns))
        }
    };
    store.view().iter().map(text).collect()
}

/// The store that a process uses which publishes for node 1.
struct Used {
    store: RwLock<Store>,
    id: AggregateId,
    told: u64,
}

impl Used {
    fn new(directory: &Path, own: &Writing) -> Used {
        // It makes its aggregate when it has read the store.
        fs::remove_file(&own.path).unwrap();
        let mut store = Store::open_whole(directory, [1; 16]).unwrap();
        own.save();
        let id = store.add_own(&own.path, None, &own.builder.identity).unwrap();
        Used { store: RwLock::new(store), id, told: 0 }
    }

    /// As the writer does: what is on the disk by now is told.
    fn tell(&mut self, own: &Writing) {
        let recovered = recover(&fs::File::open(&own.path).unwrap()).unwrap();
        for segment in recovered.segments.iter().skip(self.told as usize) {
            self.store.write().publish(self.id, segment);
            self.told += 1;
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Record(usize, Kind, String, String),
    Publish(usize),
    Tear(usize, usize),
    Refresh,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let kinds = [Kind::File, Kind::File, Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink]
        .into_iter()
        .chain([Kind::Rename, Kind::Rename, Kind::Unlink, Kind::RemoveDirectory, Kind::SetAttributes]);
    let kind = prop::sample::select(kinds.collect::<Vec<_>>());
    let name = || {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4).prop_map(|parts| parts.join("/"))
    };
    let action = prop_oneof![
        6 => (0usize..3, kind, name(), name()).prop_map(|(node, kind, path, to)| Action::Record(node, kind, path, to)),
        3 => (0usize..3).prop_map(Action::Publish),
        1 => (1usize..3, 0usize..20_000).prop_map(|(node, cut)| Action::Tear(node, cut)),
        3 => Just(Action::Refresh),
    ];
    prop::collection::vec(action, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_refreshed_store_shows_what_is_on_the_disk(actions in actions()) {
        let directory = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Writing> = (1..=3).map(|number| Writing::new(directory.path(), number)).collect();
        let mut used = Used::new(directory.path(), &nodes[0]);
        for (number, action) in actions.into_iter().enumerate() {
            match action {
                Action::Record(node, kind, path, target) => {
                    let time_ns = number as u64 + 1;
                    let (mut record, content) = match kind {
                        Kind::File => file(&path, format!("version {number}").as_bytes(), time_ns),
                        _ => entry(kind, &path, &target, time_ns),
                    };
                    if matches!(kind, Kind::Unlink | Kind::RemoveDirectory | Kind::SetAttributes | Kind::Directory) {
                        record.target.clear();
                    }
                    record.attributes.mode = 0o600 + (number % 8) as u32;
                    record.inode = number as u64 % 4;
                    if kind == Kind::File && number % 3 > 0 {
                        // At the same time as what other nodes do.
                        record.flags = Entry::writing_flags(Duration::from_secs(2));
                    }
                    nodes[node].waiting.push((record, content));
                }
                Action::Publish(node) => {
                    nodes[node].publish();
                    used.tell(&nodes[0]);
                }
                Action::Tear(node, cut) => nodes[node].tear(cut),
                Action::Refresh => {
                    let before = shown(&used.store.read());
                    let changed = refresh(&used.store).unwrap();
                    let (seen, fresh) = (shown(&used.store.read()), Store::open(directory.path()).unwrap());
                    prop_assert_eq!(&seen, &shown(&fresh));
                    prop_assert!(!changed.is_empty() || seen == before, "nobody was told");
                    prop_assert!(!seen.iter().any(|name| name.contains("torn")));
                    prop_assert!(refresh(&used.store).unwrap().is_empty(), "the same is news again");
                }
            }
        }
    }
}

/// What two nodes do to different names in one directory is added, whoever publishes first.
#[test]
fn what_comes_late_is_added() {
    let directory = tempfile::tempdir().unwrap();
    let (mut own, mut other) = (Writing::new(directory.path(), 1), Writing::new(directory.path(), 2));
    own.waiting = vec![file("c/own", b"own", 10)];
    own.publish();
    let mut used = Used::new(directory.path(), &own);
    used.tell(&own);
    for round in 1..50 {
        other.waiting = vec![file(&format!("c/{round}"), b"other", 10 * round + 5)];
        own.waiting = vec![file("c/own", b"own", 10 * round + 9)];
        own.publish();
        used.tell(&own);
        other.publish();
        let changed = refresh(&used.store).unwrap();
        assert!(!changed.is_all, "everything was read anew");
        assert_eq!(changed.names.into_iter().collect::<Vec<_>>(), [format!("c/{round}").into_bytes()]);
    }
    // Their older version of a name that this node has written since.
    other.waiting = vec![file("c/own", b"other", 495)];
    other.publish();
    assert!(refresh(&used.store).unwrap().is_all);
    assert_eq!(shown(&used.store.read()), shown(&Store::open(directory.path()).unwrap()));
}

/// An aggregate with nothing alive goes; one that is in use is missed.
#[test]
fn an_aggregate_that_goes_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let own = Writing::new(directory.path(), 1);
    let (mut old, mut new) = (Writing::new(directory.path(), 2), Writing::new(directory.path(), 3));
    old.waiting = vec![file("c/a", b"old", 10)];
    new.waiting = vec![file("c/a", b"new", 20)];
    old.publish();
    new.publish();
    let used = Used::new(directory.path(), &own);
    fs::remove_file(&old.path).unwrap();
    assert!(refresh(&used.store).unwrap().is_empty());
    assert_eq!(used.store.read().aggregates().count(), 2);
    fs::remove_file(&new.path).unwrap();
    assert!(refresh(&used.store).unwrap().is_all);
    assert_eq!(shown(&used.store.read()), Vec::<String>::new());
}
