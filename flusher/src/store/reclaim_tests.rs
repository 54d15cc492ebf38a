//! Reclaiming against a store from which nothing was ever removed: random histories of two nodes, and every state that
//! a crash can leave. And what a merge of such a store shows.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::aggregate::tests::{Builder, entry, file};
use crate::aggregate::{Entry, FLAG_CONTINUED, FLAG_ENDED, format_entry};

type Item = (Entry, Vec<u8>);

/// What a reader sees: kind, content or text, mode, time, and the names that share it.
fn shown(directory: &Path) -> BTreeMap<String, String> {
    let store = Store::open(directory).unwrap();
    assert_eq!(store.notes(), []);
    let mut shown = BTreeMap::new();
    for (path, node) in store.view().iter() {
        let mut names = store.view().names(node);
        names.sort();
        let names = if names.len() > 1 { names } else { Vec::new() };
        let text = match node {
            Node::Directory(Directory { recorded: None }) => continue,
            Node::Directory(Directory { recorded: Some(recorded) }) => format!("directory {:?}", recorded.attributes),
            Node::Symlink(link) => format!("link {:?} {:?}", link.target, link.attributes),
            Node::File(version) => {
                let mut bytes = Vec::new();
                let taken = store.copier(version).unwrap().copy(&mut |_, data| {
                    bytes.extend_from_slice(data);
                    Ok(())
                });
                taken.unwrap();
                let (attributes, time_ns) = (&version.attributes, version.operation_time_ns);
                let is_contested = store.reader(version).unwrap().copy(&mut |_, _| Ok(())).is_err();
                assert_eq!(is_contested, version.is_contested());
                format!("file {bytes:?} {attributes:?} {time_ns} {names:?} {is_contested}")
            }
        };
        shown.insert(String::from_utf8(path).unwrap(), text);
    }
    shown
}

/// One node: its aggregates, the last of which it writes to, and what it has not published yet.
struct Writing {
    directory: PathBuf,
    number: u8,
    aggregates: Vec<(PathBuf, Builder)>,
    waiting: Vec<Item>,
    made: u8,
    /// Whether it says which stage is its own, and everybody has published everything when something is reclaimed.
    has_stage: bool,
}

impl Writing {
    fn new(directory: &Path, number: u8) -> Writing {
        Writing::with_stage(directory, number, false)
    }

    fn with_stage(directory: &Path, number: u8, has_stage: bool) -> Writing {
        let (directory, aggregates, waiting) = (directory.to_owned(), Vec::new(), Vec::new());
        let mut writing = Writing { directory, number, aggregates, waiting, made: 0, has_stage };
        writing.roll();
        writing
    }

    fn roll(&mut self) {
        self.made += 1;
        // Whichever comes first in the order of equal times must not matter.
        let mut builder = Builder::new(self.made.wrapping_mul(97) ^ self.number);
        builder.identity.node = format!("node{}", self.number);
        builder.identity.stage = if self.has_stage { [self.stage(); 16] } else { [0; 16] };
        self.aggregates.push((self.directory.join(format!("n{}-{}.tar", self.number, self.made)), builder));
        self.save();
    }

    /// A node gets a new one now and then, and never goes back to an old one.
    fn stage(&self) -> u8 {
        10 * (self.made / 3) + self.number
    }

    fn publish(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.aggregates.last_mut().unwrap().1.segment(waiting);
            self.save();
        }
    }

    fn save(&self) {
        let (path, builder) = self.aggregates.last().unwrap();
        fs::write(path, builder.finished()).unwrap();
    }

    /// Reclaims an aggregate if that is allowed; what is seen stays the same after each step. Yields how many records
    /// were copied.
    fn reclaim(&mut self, which: usize) -> Option<usize> {
        let victim = which % self.aggregates.len();
        if victim == self.aggregates.len() - 1 {
            self.roll();
        }
        let before = shown(&self.directory);
        let mut planner = Planner::read(&self.directory, Duration::ZERO).unwrap();
        if self.has_stage {
            planner.nobody_else_writes();
        }
        let (uuid, own) = (self.aggregates[victim].1.identity.uuid, self.aggregates.last().unwrap().1.identity.uuid);
        let plan = planner.plan(uuid, &HashSet::new(), Some(own)).ok()?;
        // In several segments: a crash may come between any two.
        for part in plan.copies.chunks(3) {
            let items = part.iter().map(|copy| (copy.entry.clone(), content(&planner, copy)));
            self.aggregates.last_mut().unwrap().1.segment(items.collect());
            self.save();
            assert_eq!(shown(&self.directory), before, "a part is copied");
        }
        let (path, _) = self.aggregates.remove(victim);
        // A reader that has the store open finds everything again.
        let mut open = Store::open(&self.directory).unwrap();
        let files: Vec<_> = open.view().iter().filter_map(|(path, node)| Some((path, file_of(node)?))).collect();
        fs::remove_file(path).unwrap();
        for (path, version) in files {
            let read = open.copier(&version).and_then(|reader| reader.copy(&mut |_, _| Ok(())));
            assert!(read.is_ok(), "{}: {read:?}", path.escape_ascii());
        }
        assert_eq!(shown(&self.directory), before, "the original is gone");
        open.refresh().unwrap();
        let fresh = Store::open(&self.directory).unwrap();
        let names = |store: &Store| store.view().iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(names(&open), names(&fresh), "refreshed");
        Some(plan.copies.len())
    }
}

fn file_of(node: &Node) -> Option<Arc<Version>> {
    if let Node::File(version) = node { Some(version.clone()) } else { None }
}

fn content(planner: &Planner, copy: &Copied) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(version) = &copy.version {
        let mut take = |_, data: &[u8]| {
            bytes.extend_from_slice(data);
            Ok(())
        };
        planner.reader(version).unwrap().copy(&mut take).unwrap();
    }
    bytes
}

#[derive(Clone, Debug)]
enum Action {
    Record(bool, Kind, String, String),
    Publish(bool),
    Roll(bool),
    Reclaim(bool, usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let kind = prop::sample::select(vec![
        Kind::File,
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
    // Mostly the first node.
    let node = prop::sample::select(vec![true, true, true, false]);
    let action = prop_oneof![
        6 => (node.clone(), kind, name.clone(), name).prop_map(|(n, kind, path, to)| Action::Record(n, kind, path, to)),
        3 => node.clone().prop_map(Action::Publish),
        1 => node.clone().prop_map(Action::Roll),
        2 => (node, any::<usize>()).prop_map(|(n, which)| Action::Reclaim(n, which)),
    ];
    prop::collection::vec(action, 0..80)
}

fn item(kind: Kind, path: &str, target: &str, number: u64) -> Item {
    let (mut entry, content) = match kind {
        Kind::File => file(path, format!("version {number}").as_bytes(), number),
        _ => entry(kind, path, target, number),
    };
    if matches!(kind, Kind::Unlink | Kind::RemoveDirectory | Kind::SetAttributes | Kind::Directory) {
        entry.target.clear();
    }
    entry.attributes.mode = 0o600 + (number % 8) as u32;
    (entry, content)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ever_seen_of_reclaiming(actions in actions(), tick in 1u64..5, has_stages: bool) {
        let scratch = tempfile::tempdir().unwrap();
        let (all, kept) = (scratch.path().join("all"), scratch.path().join("kept"));
        fs::create_dir(&all).unwrap();
        fs::create_dir(&kept).unwrap();
        let nodes = |directory: &Path| [1, 2].map(|number| Writing::with_stage(directory, number, has_stages));
        let (mut never, mut nodes) = (nodes(&all), nodes(&kept));
        let mut clocks = [0; 2];
        for (number, action) in actions.into_iter().enumerate() {
            let index = |first: bool| usize::from(!first);
            match action {
                Action::Record(first, kind, path, target) => {
                    // Of the same names only at times of their own: else chance decides. A node's clock never stands
                    // still.
                    let of_node = |path: String| if tick > 1 { format!("{}/{path}", index(first)) } else { path };
                    let mut item = item(kind, &of_node(path), &of_node(target), number as u64 + 1);
                    let now = (number as u64 / tick + 1) * 1000;
                    clocks[index(first)] = now.max(clocks[index(first)] + 1);
                    item.0.operation_time_ns = clocks[index(first)];
                    item.0.inode = number as u64 % 4;
                    if kind == Kind::File && number % 3 > 0 {
                        // At the same time as what the other node does.
                        item.0.flags = Entry::writing_flags(Duration::from_secs(2));
                    }
                    for writing in [&mut never[index(first)], &mut nodes[index(first)]] {
                        writing.waiting.push(item.clone());
                    }
                }
                Action::Publish(first) => {
                    for writing in [&mut never[index(first)], &mut nodes[index(first)]] {
                        writing.publish();
                    }
                }
                Action::Roll(first) => nodes[index(first)].roll(),
                Action::Reclaim(first, which) => {
                    if has_stages {
                        never.iter_mut().chain(&mut nodes).for_each(Writing::publish);
                    }
                    let _ = nodes[index(first)].reclaim(which);
                }
            }
        }
        for writing in never.iter_mut().chain(&mut nodes) {
            writing.publish();
        }
        prop_assert_eq!(shown(&kept), shown(&all));
        for directory in [&kept, &all] {
            prop_assert_eq!(merged(directory, scratch.path()), shown(directory));
        }
    }
}

/// What is seen of everything in a store as one aggregate.
fn merged(directory: &Path, scratch: &Path) -> BTreeMap<String, String> {
    let planner = Planner::read(directory, Duration::ZERO).unwrap();
    let copies = Store::open(directory).unwrap().content();
    let mut builder = Builder::new(200);
    // As many segments as there may be.
    for part in copies.chunks(3) {
        builder.segment(part.iter().map(|copy| (copy.entry.clone(), content(&planner, copy))).collect());
    }
    let merged = scratch.join("merged");
    fs::create_dir_all(&merged).unwrap();
    fs::write(merged.join("m.tar"), builder.finished()).unwrap();
    let again = Store::open(&merged).unwrap().content();
    let by_path = |copies: &[Copied]| -> BTreeMap<Vec<u8>, Copied> {
        copies.iter().map(|copy| (copy.entry.path.clone(), copy.clone())).collect()
    };
    let (copies, again) = (by_path(&copies), by_path(&again));
    assert!(copies.len() == again.len() && copies.iter().all(|(path, copy)| again[path].is_same(copy)));
    shown(&merged)
}

#[test]
fn a_rotating_program_leaves_nothing_to_copy() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Writing::new(scratch.path(), 1);
    for number in 1..=40 {
        node.waiting.push(item(Kind::Rename, "ckpt.1", "ckpt.2", 10 * number));
        node.waiting.push(item(Kind::Rename, "ckpt.0", "ckpt.1", 10 * number + 1));
        node.waiting.push(item(Kind::File, "ckpt.0", "", 10 * number + 2));
        node.publish();
        if number % 10 == 0 {
            node.roll();
        }
    }
    assert_eq!(node.reclaim(0), Some(0));
    assert_eq!(node.reclaim(0), Some(0));
    assert_eq!(node.reclaim(0), Some(0));
    // What is alive, and the renames that brought it where it is.
    assert_eq!(node.reclaim(0), Some(3 + 2 + 1));
    assert_eq!(shown(scratch.path()).len(), 3);
}

/// Nodes that write their checkpoints at once do so within one tick of their clocks.
#[test]
fn what_other_nodes_do_at_the_same_time_is_in_nobodys_way() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Writing::new(scratch.path(), 1), Writing::new(scratch.path(), 2));
    second.waiting.extend([item(Kind::File, "b.new", "", 10), item(Kind::Rename, "b.new", "b", 11)]);
    first.waiting.extend([item(Kind::File, "a.new", "", 10), item(Kind::Rename, "a.new", "a", 11)]);
    first.publish();
    second.publish();
    first.roll();
    second.waiting.push(item(Kind::File, "later", "", 20));
    second.publish();
    assert_eq!(first.reclaim(0), Some(2));
    // Of two that concern one name nobody can tell where a copy would stand.
    second.waiting.push(item(Kind::File, "c", "", 30));
    second.publish();
    first.waiting.push(item(Kind::File, "c/below", "", 30));
    first.publish();
    second.waiting.push(item(Kind::File, "later", "", 40));
    second.publish();
    let which = first.aggregates.len() - 1;
    assert_eq!(first.reclaim(which), None);
}

#[test]
fn a_copy_is_shown_under_its_present_name() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Writing::new(scratch.path(), 1);
    node.waiting = vec![
        item(Kind::File, "state.new", "", 1),
        item(Kind::Rename, "state.new", "state", 2),
        item(Kind::Symlink, "latest", "state", 3),
        item(Kind::Symlink, "gone", "state", 4),
        item(Kind::Rename, "gone", "here", 5),
        item(Kind::HardLink, "under", "state", 6),
    ];
    node.publish();
    node.roll();
    assert_eq!(node.reclaim(0), Some(6));
    let (path, _) = node.aggregates.last().unwrap();
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let paths = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    let paths: Vec<_> = paths.filter(|path| !path.starts_with(".sheaf")).collect();
    assert_eq!(paths, ["state", "latest"]);
}

#[test]
fn nothing_goes_before_every_node_of_the_job_has_published() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Writing::new(scratch.path(), 1), Writing::new(scratch.path(), 2));
    second.waiting.push(item(Kind::File, "other", "", 1));
    second.publish();
    first.waiting.push(item(Kind::File, "a", "", 10));
    first.publish();
    first.roll();
    first.waiting.push(item(Kind::File, "a", "", 30));
    first.publish();
    // The second node has moved the older version away meanwhile, and not published that.
    assert_eq!(first.reclaim(0), None);
    second.waiting.push(item(Kind::Rename, "a", "b", 20));
    second.publish();
    second.waiting.push(item(Kind::File, "other", "", 40));
    second.publish();
    assert_eq!(first.reclaim(0), Some(1));
    let names: Vec<_> = shown(scratch.path()).into_keys().collect();
    assert_eq!(names, ["a", "b", "other"]);
}

#[test]
fn nothing_goes_while_something_cannot_be_read() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Writing::new(scratch.path(), 1);
    node.waiting.push(item(Kind::File, "a", "", 1));
    node.publish();
    node.roll();
    node.waiting.push(item(Kind::File, "a", "", 2));
    node.publish();
    let broken = node.aggregates.last().unwrap().0.clone();
    let whole = fs::read(&broken).unwrap();
    let mut damaged = whole.clone();
    damaged[4096 + 2048] ^= 1;
    fs::write(&broken, damaged).unwrap();
    let planner = Planner::read(scratch.path(), Duration::ZERO).unwrap();
    let refusal = planner.plan(node.aggregates[0].1.identity.uuid, &HashSet::new(), None).unwrap_err();
    assert!(refusal.to_string().contains("cannot be read"), "{refusal}");
    fs::write(&broken, whole).unwrap();
    assert_eq!(node.reclaim(0), Some(0));
}

/// Names and renames take room, too: an aggregate with many of them must not look dead for ever.
#[test]
fn what_would_be_copied_again_and_again_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Writing::new(scratch.path(), 1);
    node.waiting.push(item(Kind::File, "a", "", 1));
    node.waiting.extend((2..1000).map(|number| item(Kind::HardLink, &format!("l{number}"), "a", number)));
    node.publish();
    node.roll();
    let planner = Planner::read(scratch.path(), Duration::ZERO).unwrap();
    let first = planner.candidates(None).remove(0);
    assert!(!first.is_full(), "{first:?}");
    let plan = planner.plan(first.uuid, &HashSet::new(), None).unwrap();
    assert_eq!(plan.copies.len(), 999);
    assert!(!plan.frees_half_of(first.written_bytes), "{} of {}", plan.copied_bytes, first.written_bytes);
}

fn candidate(uuid: u8, written_bytes: u64, bytes: u64) -> Candidate {
    let live = Live { bytes, records: bytes.min(1) };
    let (id, path, node) = (AggregateId(uuid.into()), PathBuf::new(), String::new());
    Candidate { id, uuid: [uuid; 16], path, first: None, node, sealed: false, written_bytes, watermark_bytes: 0, live }
}

#[test]
fn the_dead_go_first_then_the_mostly_dead_then_the_many() {
    let mebibyte = 1 << 20;
    let choose = |candidates: &[Candidate], current| {
        next_victim(candidates, current, |_, _| true).map(|(victim, cause)| (victim.uuid[0], cause))
    };
    let mut two = vec![candidate(1, 10 * mebibyte, 9 * mebibyte), candidate(2, mebibyte, 0)];
    assert_eq!(choose(&two, Some([2; 16])), None);
    assert_eq!(choose(&two, Some([1; 16])), Some((2, Cause::Space)));
    two[1] = candidate(2, 10 * mebibyte, 5 * mebibyte);
    assert_eq!(choose(&two, None), None);
    two[0] = candidate(1, 10 * mebibyte, 4 * mebibyte);
    assert_eq!(choose(&two, None), Some((1, Cause::Space)));
    let for_number = |_: &Candidate, cause| cause == Cause::Number;
    let dead: Vec<_> = (1..=17).map(|number| candidate(number, mebibyte + u64::from(number), 0)).collect();
    let chosen = next_victim(&dead, None, for_number).map(|(victim, cause)| (victim.uuid[0], cause));
    assert_eq!(chosen, Some((1, Cause::Number)), "not worth it for its space, and yet one too many");
    let many: Vec<_> = (1..=17).map(|number| candidate(number, mebibyte + u64::from(number), mebibyte)).collect();
    assert_eq!(choose(&many, Some([1; 16])), Some((2, Cause::Number)));
    assert_eq!(choose(&many[..16], None), None);
    assert!(candidate(1, 4 * mebibyte, 2 * mebibyte).is_full() && !candidate(1, 4 * mebibyte, 4 * mebibyte).is_full());
}

/// The aggregate of a stage, with what it has told last.
fn told(directory: &Path, number: u8, stage: u8, items: Vec<Item>, watermark: (u64, u32)) -> [u8; 16] {
    let mut builder = Builder::new(number);
    builder.identity.stage = [stage; 16];
    builder.identity.created_ns = number.into();
    builder.bytes = format_entry(&builder.identity);
    let watermark = (Entry::watermark(watermark.0, watermark.1), Vec::new());
    builder.segment(items.into_iter().chain([watermark]).collect());
    fs::write(directory.join(format!("{number}.tar")), builder.finished()).unwrap();
    builder.identity.uuid
}

#[test]
fn what_a_cut_may_still_show_stays() {
    let directory = tempfile::tempdir().unwrap();
    let old = told(directory.path(), 1, 1, vec![file("a", b"old", 100)], (100, FLAG_CONTINUED));
    told(directory.path(), 2, 1, vec![file("a", b"new", 200)], (400, 0));
    let plan = |skew_ns| {
        let planner = Planner::read(directory.path(), Duration::from_nanos(skew_ns)).unwrap();
        planner.plan(old, &HashSet::new(), None).map(|plan| plan.copies.len())
    };
    assert_eq!(plan(10).ok(), Some(0), "there is no other node");
    for (told_ns, flags, is_settled) in [(150, 0, false), (205, 0, false), (211, 0, true), (150, FLAG_ENDED, true)] {
        told(directory.path(), 3, 2, vec![file("b", b"other", 90)], (told_ns, flags));
        assert_eq!(plan(10).is_ok(), is_settled, "the other node has told {told_ns}");
    }
    // Whichever of the two came first, no cut is between them any more.
    told(directory.path(), 3, 2, vec![file("b", b"other", 205)], (400, 0));
    assert!(plan(10).is_ok());
}

#[test]
fn the_last_word_of_a_node_stays() {
    let directory = tempfile::tempdir().unwrap();
    let removed = |path: &str, time_ns| vec![file(path, b"", time_ns), entry(Kind::Unlink, path, "", time_ns + 1)];
    let older = told(directory.path(), 1, 1, removed("a", 10), (20, 0));
    let newer = told(directory.path(), 2, 1, removed("a", 30), (40, FLAG_ENDED));
    let is_planned =
        |uuid| Planner::read(directory.path(), Duration::ZERO).unwrap().plan(uuid, &HashSet::new(), None).is_ok();
    assert_eq!((is_planned(older), is_planned(newer)), (true, false), "the older one does not say that it has ended");
    told(directory.path(), 1, 1, removed("a", 10), (20, FLAG_CONTINUED));
    assert!(is_planned(newer));
    fs::remove_file(directory.path().join("1.tar")).unwrap();
    assert!(is_planned(newer));
    told(directory.path(), 2, 1, removed("a", 30), (40, 0));
    assert!(!is_planned(newer), "it has not ended");
}

/// What `Store::decide` decides is what a store opened afterwards shows, until the lost nodes are back; then it goes.
#[test]
fn a_decision_holds_until_the_lost_are_back() {
    let directory = tempfile::tempdir().unwrap();
    told(directory.path(), 1, 1, vec![file("a", b"", 100), file("late", b"", 200)], (300, 0));
    told(directory.path(), 2, 2, vec![file("b", b"", 101)], (150, 0));
    let names = || -> Vec<String> {
        let store = Store::open(directory.path()).unwrap();
        store.view().iter().map(|(path, _)| String::from_utf8(path).unwrap()).collect()
    };
    let decide = |choice| {
        let mut store = Store::open_for(directory.path(), [9; 16]).unwrap();
        store.decide(choice, Duration::from_nanos(10)).unwrap();
        store.view().iter().count()
    };
    let cuts = || {
        fs::read_dir(directory.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "cut"))
            .count()
    };
    assert_eq!(names(), ["a", "b", "late"]);
    assert_eq!((decide(Choice::Newest), cuts()), (2, 1));
    // It is decided once, and holds for the next job, whose own work is never hidden.
    told(directory.path(), 3, 3, vec![file("next", b"", 190)], (500, FLAG_ENDED));
    assert_eq!((decide(Choice::Complete), cuts()), (3, 1));
    assert_eq!(names(), ["a", "b", "next"]);
    let own = Store::open_for(directory.path(), [1; 16]).unwrap();
    assert!(own.view().get(b"late").is_some(), "a stage sees what it has published");
    // One of two is back, then both.
    told(directory.path(), 4, 2, vec![file("c", b"", 160)], (600, FLAG_ENDED));
    assert_eq!(names(), ["a", "b", "c", "next"]);
    told(directory.path(), 5, 1, vec![file("d", b"", 400)], (600, FLAG_ENDED));
    assert_eq!(names(), ["a", "b", "c", "d", "late", "next"]);
    for number in [1, 2] {
        fs::remove_file(directory.path().join(format!("{number}.tar"))).unwrap();
    }
    assert_eq!((decide(Choice::Newest), cuts()), (3, 0));
    // A decision that cannot be understood hides nothing, and keeps everything from being reclaimed.
    fs::write(directory.path().join("0.cut"), "SHEAF-CUT 2\n").unwrap();
    assert!(Store::open(directory.path()).unwrap().notes().iter().any(|note| !note.foreign));
}
