//! The consistent cut: up to which time the store shows what all nodes of a job have done.
//!
//! A node is what one stage has published, in however many aggregates. Each tells up to which time it has published
//! everything; one that is lost cannot say what it did after that. A cut is a time at which nothing that can be seen
//! may have happened because of something that cannot. Nothing here changes an aggregate, and no node may be cut off
//! that still lives.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decision::{Decided, Decision};
use super::merge::{Addition, Step, steps};
use super::{Aggregate, Lock, Node, Store, View};

/// Everything counts, however late.
pub const NO_LIMIT: u64 = u64::MAX;

/// A cut is no older than the last word of a lost node by more than so many times the skew. If the nodes wrote all the
/// time, closer to each other than the skew, it is made where it is right for clocks that agree better.
const PATIENCE: u64 = 10;
/// A node that others have outlived by so much is not one that they depend on: it cuts nothing off.
const OUTLIVED_NS: u64 = 3_600_000_000_000;

/// Which part of what was published is shown (`SHEAF_CUT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The newest consistent cut.
    Newest,
    /// Everything, consistent or not.
    Complete,
    /// The newest consistent cut at or before this time.
    Until(u64),
}

impl Choice {
    /// Reads `newest`, `complete`, or seconds since 1970 with at most nine digits behind a point.
    pub fn parse(text: &str) -> Option<Choice> {
        let (seconds, fraction) = match text {
            "newest" => return Some(Choice::Newest),
            "complete" => return Some(Choice::Complete),
            _ => text.split_once('.').unwrap_or((text, "0")),
        };
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
            return None;
        }
        let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
        Some(Choice::Until(seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)?))
    }
}

impl Aggregate {
    /// Orders the aggregates of one stage: the greatest has its last word.
    fn age(&self) -> (u64, [u8; 16]) {
        (self.identity.created_ns, self.identity.uuid)
    }
}

/// Whether a record counts, with what is known of up to which time each aggregate does.
pub(super) fn counts(limits: &HashMap<[u8; 16], u64>, step: &Step<'_>) -> bool {
    limits.get(&step.key.2).is_none_or(|limit_ns| step.time_ns() <= *limit_ns)
}

/// What one node of a job has published and told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    /// When its operations happened.
    times: Vec<u64>,
    /// What it did later than this may be missing. `None` when nothing is.
    watermark_ns: Option<u64>,
}

/// No cut is later.
fn latest(nodes: &[Told], latest_ns: u64) -> u64 {
    nodes.iter().filter_map(|node| node.watermark_ns).chain([latest_ns]).min().unwrap_or(latest_ns)
}

fn nanoseconds(skew: Duration) -> u64 {
    u64::try_from(skew.as_nanos()).unwrap_or(NO_LIMIT)
}

/// The newest time that is no later than `latest_ns` and no watermark, and before which nothing can be seen that may
/// have happened because of what cannot: an operation of another node that is later than the cut, or missing, is later
/// than everything that can be seen by more than `skew_ns`. On one node the order is known, and no distance is needed.
fn newest_cut(nodes: &[Told], latest_ns: u64, skew_ns: u64) -> u64 {
    let mut cut_ns = latest(nodes, latest_ns);
    // What a node that is lost did next would be missing just behind its watermark.
    let missing =
        nodes.iter().enumerate().filter_map(|(node, told)| Some((told.watermark_ns?.saturating_add(1), node)));
    let seen = nodes.iter().enumerate().flat_map(|(node, told)| told.times.iter().map(move |time| (*time, node)));
    let mut events: Vec<(u64, usize)> = missing.chain(seen).collect();
    events.sort_unstable();
    let mut hidden = CutOff::default();
    while events.last().is_some_and(|(time_ns, _)| *time_ns > cut_ns) {
        hidden.take(events.pop());
    }
    while let Some(last) = hidden.too_close(&events, skew_ns) {
        cut_ns = events[last].0 - 1;
        events.drain(last..).rev().for_each(|event| hidden.take(Some(event)));
        while events.last().is_some_and(|(time_ns, _)| *time_ns > cut_ns) {
            hidden.take(events.pop());
        }
    }
    cut_ns
}

/// The earliest operation that a cut hides, and the earliest one of another node.
#[derive(Debug)]
struct CutOff {
    first: (u64, usize),
    of_another: u64,
}

impl Default for CutOff {
    fn default() -> CutOff {
        CutOff { first: (NO_LIMIT, usize::MAX), of_another: NO_LIMIT }
    }
}

impl CutOff {
    /// Hides an operation that is earlier than all that are hidden.
    fn take(&mut self, event: Option<(u64, usize)>) {
        let Some((time_ns, node)) = event else { return };
        if node != self.first.1 {
            self.of_another = self.first.0;
        }
        self.first = (time_ns, node);
    }

    /// The place of the newest visible operation that may have happened because of a hidden one of another node.
    fn too_close(&self, visible: &[(u64, usize)], skew_ns: u64) -> Option<usize> {
        let is_too_close = |(time_ns, node): &(u64, usize)| {
            let hidden_ns = if *node == self.first.1 { self.of_another } else { self.first.0 };
            hidden_ns != NO_LIMIT && time_ns.saturating_add(skew_ns) >= hidden_ns
        };
        // The newest of each of two nodes says it all: the others' are earlier than these, and no closer.
        let newest = visible.len().checked_sub(1)?;
        if is_too_close(&visible[newest]) {
            return Some(newest);
        }
        let other = visible.iter().rposition(|(_, node)| *node != visible[newest].1)?;
        is_too_close(&visible[other]).then_some(other)
    }
}

/// Cuts nothing off for a node that others have outlived.
fn forget_outlived(nodes: &mut [Told]) {
    let newest_ns = nodes.iter().flat_map(|node| &node.times).copied().max().unwrap_or(0);
    for node in nodes {
        node.watermark_ns =
            node.watermark_ns.filter(|watermark_ns| newest_ns <= watermark_ns.saturating_add(OUTLIVED_NS));
    }
}

/// What one stage has published, the oldest first.
#[derive(Clone, Debug)]
struct Stage<'a> {
    uuid: [u8; 16],
    aggregates: Vec<&'a Aggregate>,
}

impl Stage<'_> {
    fn began_ns(&self) -> u64 {
        self.aggregates.iter().map(|aggregate| aggregate.identity.created_ns).min().unwrap_or(0)
    }

    fn watermark_ns(&self) -> u64 {
        self.aggregates.iter().map(|aggregate| aggregate.watermark_ns).max().unwrap_or(0)
    }

    fn acknowledged_ns(&self) -> u64 {
        self.aggregates.iter().map(|aggregate| aggregate.acknowledged_ns).max().unwrap_or(0)
    }

    /// Nothing is known of it that happened later.
    fn last_word_ns(&self) -> u64 {
        let last = |aggregate: &&Aggregate| aggregate.newest_ns.max(aggregate.identity.created_ns);
        self.aggregates.iter().map(last).fold(self.watermark_ns(), u64::max)
    }

    /// Whether its node has done everything that it will.
    fn ended(&self) -> bool {
        self.aggregates.iter().max_by_key(|aggregate| aggregate.age()).is_none_or(|newest| newest.ended)
    }

    fn node(&self) -> &str {
        self.aggregates.first().map_or("", |aggregate| &aggregate.identity.node)
    }

    /// The locks of what was not closed in peace.
    fn locks(&self) -> impl Iterator<Item = Lock> {
        self.aggregates.iter().filter(|aggregate| !aggregate.sealed).map(|aggregate| aggregate.lock())
    }
}

/// The stages of one job.
#[derive(Debug, Default)]
struct Group<'a> {
    stages: Vec<Stage<'a>>,
}

impl<'a> Group<'a> {
    fn aggregates(&self) -> impl Iterator<Item = &'a Aggregate> {
        self.stages.iter().flat_map(|stage| &stage.aggregates).copied()
    }

    /// The stages of each node, one after the other: one that was made on a node behind the last word of another, to
    /// which nobody writes any more, has taken its place. What was done in it is later than all that the other one had.
    fn nodes(&self) -> Vec<Vec<&Stage<'a>>> {
        let mut stages: Vec<&Stage<'a>> = self.stages.iter().collect();
        stages.sort_by_key(|stage| stage.began_ns());
        // By name: of ten thousand nodes, each would be compared with all.
        let mut nodes: BTreeMap<&str, Vec<Vec<&Stage<'a>>>> = BTreeMap::new();
        for stage in stages {
            let is_before = |other: &Stage<'a>| {
                other.last_word_ns() < stage.began_ns() && other.locks().all(|lock| !matches!(lock, Lock::Busy))
            };
            let of_name = nodes.entry(stage.node()).or_default();
            match of_name.iter_mut().find(|node| node.last().is_some_and(|last| is_before(last))) {
                Some(node) => node.push(stage),
                None => of_name.push(vec![stage]),
            }
        }
        nodes.into_values().flatten().collect()
    }

    /// The last stage of each node that has not ended.
    fn unended(&self) -> Vec<[u8; 16]> {
        let last = self.nodes().into_iter().filter_map(|node| node.last().copied());
        last.filter(|stage| !stage.ended()).map(|stage| stage.uuid).collect()
    }

    /// Whether somebody writes to it, as far as can be told.
    fn is_alive(&self) -> bool {
        self.stages.iter().flat_map(Stage::locks).any(|lock| !matches!(lock, Lock::Held(_)))
    }

    fn told(&self, times: &HashMap<[u8; 16], Vec<u64>>) -> Vec<Told> {
        let told = |node: Vec<&Stage<'a>>| {
            let aggregates = node.iter().flat_map(|stage| &stage.aggregates);
            let of = aggregates.filter_map(|aggregate| times.get(&aggregate.identity.uuid));
            let last = node.last().filter(|last| !last.ended());
            Told { times: of.flatten().copied().collect(), watermark_ns: last.map(|last| last.watermark_ns()) }
        };
        self.nodes().into_iter().map(told).collect()
    }

    fn cut_ns(&self, times: &HashMap<[u8; 16], Vec<u64>>, choice: Choice, skew: Duration) -> u64 {
        let mut told = self.told(times);
        let latest_ns = match choice {
            Choice::Complete => return NO_LIMIT,
            Choice::Until(latest_ns) => latest_ns,
            // What one node has published is a prefix of what happened on it.
            Choice::Newest if told.len() < 2 => return NO_LIMIT,
            Choice::Newest => NO_LIMIT,
        };
        forget_outlived(&mut told);
        let mut skew_ns = nanoseconds(skew);
        let earliest_ns = latest(&told, latest_ns).saturating_sub(skew_ns.saturating_mul(PATIENCE));
        loop {
            let cut_ns = newest_cut(&told, latest_ns, skew_ns);
            if cut_ns >= earliest_ns || skew_ns == 0 {
                return cut_ns;
            }
            skew_ns /= 2;
        }
    }

    /// Up to which time the operations in each aggregate count if this is chosen. What somebody was told to be safe
    /// does, unless a time is asked for.
    fn limits(
        &self,
        times: &HashMap<[u8; 16], Vec<u64>>,
        choice: Choice,
        skew: Duration,
    ) -> impl Iterator<Item = (&'a Aggregate, u64)> {
        let cut_ns = self.cut_ns(times, choice, skew);
        let limit_ns = move |stage: &Stage<'a>| match choice {
            Choice::Until(_) => cut_ns,
            _ => cut_ns.max(stage.acknowledged_ns()),
        };
        self.stages.iter().flat_map(move |stage| {
            let limit_ns = limit_ns(stage);
            stage.aggregates.iter().map(move |aggregate| (*aggregate, limit_ns))
        })
    }

    /// No cut that is made from here on, when more is known, is older than this.
    fn settled_ns(&self, times: &HashMap<[u8; 16], Vec<u64>>, skew: Duration) -> u64 {
        let (told, skew_ns) = (self.told(times), nanoseconds(skew));
        if told.len() < 2 {
            return NO_LIMIT;
        }
        let earliest_ns = latest(&told, NO_LIMIT).saturating_sub(skew_ns.saturating_mul(PATIENCE));
        newest_cut(&told, NO_LIMIT, skew_ns).max(earliest_ns)
    }
}

/// The times of the operations of each aggregate.
fn times(all: &[Step<'_>]) -> HashMap<[u8; 16], Vec<u64>> {
    let mut times: HashMap<[u8; 16], Vec<u64>> = HashMap::new();
    for step in all {
        times.entry(step.key.2).or_default().push(step.time_ns());
    }
    times
}

impl Store {
    /// The aggregates that everybody can see.
    fn in_store(&self) -> impl Iterator<Item = &Aggregate> {
        self.aggregates.iter().filter(|aggregate| !aggregate.gone && !aggregate.spooled)
    }

    fn of_stage(&self, stage: [u8; 16]) -> impl Iterator<Item = &Aggregate> {
        self.in_store().filter(move |aggregate| aggregate.identity.stage == stage)
    }

    /// Of a stage: up to which time everything is published, when the newest operation that is published happened, and
    /// up to which time somebody was told that it is safe.
    pub fn told_of(&self, stage: [u8; 16]) -> (u64, u64, u64) {
        let greatest = |of: fn(&Aggregate) -> u64| self.of_stage(stage).map(of).max().unwrap_or(0);
        (
            greatest(|aggregate| aggregate.watermark_ns),
            greatest(|aggregate| aggregate.newest_ns),
            greatest(|aggregate| aggregate.acknowledged_ns),
        )
    }

    /// Whether the store knows of a stage by others than the aggregate `except`, and not that it has ended.
    pub fn is_unended(&self, stage: [u8; 16], except: Option<[u8; 16]>) -> bool {
        let others = self.of_stage(stage).filter(|aggregate| Some(aggregate.identity.uuid) != except);
        others.max_by_key(|aggregate| aggregate.age()).is_some_and(|newest| !newest.ended)
    }

    /// Whether reclaiming an aggregate would take away its stage's last word, and what is left would say something
    /// else.
    pub(super) fn is_last_word(&self, aggregate: &Aggregate, nobody_else_writes: bool) -> bool {
        if aggregate.identity.stage == [0; 16] || self.decided().contains(&aggregate.identity.uuid) {
            return false;
        }
        let others: Vec<&Aggregate> =
            self.of_stage(aggregate.identity.stage).filter(|other| other.age() != aggregate.age()).collect();
        let acknowledged_ns = others.iter().map(|other| other.acknowledged_ns).max().unwrap_or(0);
        let is_safe_by_it =
            |other: &&&Aggregate| acknowledged_ns < aggregate.acknowledged_ns && acknowledged_ns < other.newest_ns;
        let is_last = match others.iter().max_by_key(|other| other.age()) {
            Some(newest) => newest.age() < aggregate.age() && !newest.ended,
            None => !aggregate.ended && !nobody_else_writes,
        };
        (is_last || others.iter().any(|other| is_safe_by_it(&other))) && !self.is_succeeded(aggregate)
    }

    /// Whether its node goes on in another stage.
    fn is_succeeded(&self, aggregate: &Aggregate) -> bool {
        let is_before =
            |node: &Vec<&Stage<'_>>| node.iter().rev().skip(1).any(|stage| stage.uuid == aggregate.identity.stage);
        self.groups().iter().any(|group| group.nodes().iter().any(is_before))
    }

    /// The aggregates of which it has been decided what counts.
    fn decided(&self) -> HashSet<[u8; 16]> {
        self.decisions.iter().filter(|decision| self.holds(decision)).flat_map(Decision::uuids).collect()
    }

    /// The stages of each job, without aggregates of which it has been decided what counts, or that say nothing.
    fn groups(&self) -> Vec<Group<'_>> {
        let decided = self.decided();
        let mut stages: BTreeMap<(&str, [u8; 16]), Vec<&Aggregate>> = BTreeMap::new();
        for aggregate in self.in_store() {
            let identity = &aggregate.identity;
            if identity.stage != [0; 16] && !decided.contains(&identity.uuid) {
                stages.entry((&identity.job, identity.stage)).or_default().push(aggregate);
            }
        }
        let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
        for ((job, uuid), aggregates) in stages {
            groups.entry(job).or_default().stages.push(Stage { uuid, aggregates });
        }
        groups.into_values().collect()
    }

    /// No cut of this job that is made from here on can be older, whichever of its nodes are lost: everything that the
    /// nodes did up to here is known.
    pub(super) fn settled_cut_ns(&self, job: &str, all: &[Step<'_>], skew: Duration) -> u64 {
        let of_job = |group: &Group<'_>| group.aggregates().any(|aggregate| aggregate.identity.job == job);
        let group = self.groups().into_iter().find(of_job);
        group.map_or(NO_LIMIT, |group| group.settled_ns(&times(all), skew))
    }

    /// What counts of each aggregate that nothing has been decided of, if it was decided now.
    fn limits_now(&self, history: &[Addition], choice: Choice, skew: Duration) -> HashMap<[u8; 16], u64> {
        let times = times(&steps(history));
        let groups = self.groups();
        let limits = groups.iter().flat_map(|group| group.limits(&times, choice, skew));
        limits.map(|(aggregate, limit_ns)| (aggregate.identity.uuid, limit_ns)).collect()
    }
}

impl Store {
    /// As [`Store::open_all`], with what `choice` shows if all nodes that have not ended were lost now.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_cut(sources: &[PathBuf], choice: Choice, skew: Duration) -> io::Result<Store> {
        let mut store = Store { is_complete: choice == Choice::Complete, ..Store::empty(sources) };
        let history = store.read_history()?;
        store.choose(&history, choice, skew);
        store.apply(&history);
        Ok(store)
    }

    fn choose(&mut self, history: &[Addition], choice: Choice, skew: Duration) {
        self.chosen = self.limits_now(history, choice, skew);
        if let Choice::Until(latest_ns) = choice {
            // Of the others no more can be known than when it happened.
            for aggregate in &self.aggregates {
                self.chosen.entry(aggregate.identity.uuid).or_insert(latest_ns);
            }
        }
    }

    /// Up to which time the operations in each aggregate count; in one that is not named, all do.
    pub(super) fn limits_on_disk(&self) -> HashMap<[u8; 16], u64> {
        let mut limits = self.chosen.clone();
        if self.is_complete {
            return limits;
        }
        let own: HashSet<[u8; 16]> = self
            .own_stage
            .iter()
            .flat_map(|own| self.of_stage(*own))
            .map(|aggregate| aggregate.identity.uuid)
            .collect();
        for decision in self.decisions.iter().filter(|decision| self.holds(decision)) {
            for decided in decision.aggregates.iter().filter(|decided| !own.contains(&decided.uuid)) {
                let limit_ns = limits.entry(decided.uuid).or_insert(NO_LIMIT);
                *limit_ns = decided.limit_ns.min(*limit_ns);
            }
        }
        limits
    }

    /// Whether one at least of the stages that a decision takes for lost has published nothing since.
    fn holds(&self, decision: &Decision) -> bool {
        let has_grown = |aggregate: &Aggregate| {
            decision.next_sequence(aggregate.identity.uuid).is_none_or(|known| aggregate.next_sequence > known)
        };
        decision.lost.is_empty() || !decision.lost.iter().all(|stage| self.of_stage(*stage).any(has_grown))
    }

    /// Removes decisions about aggregates that are all gone.
    fn forget_decisions(&self, directory: &Path) {
        if !self.notes.is_empty() {
            return;
        }
        let is_there =
            |uuid| self.aggregates.iter().any(|aggregate| !aggregate.gone && aggregate.identity.uuid == uuid);
        for decision in self.decisions.iter().filter(|decision| !decision.uuids().any(is_there)) {
            // One that stays says nothing any more.
            let _ = fs::remove_file(decision.path(directory));
        }
    }

    /// Takes back whatever was decided: everything counts from here on, for everybody.
    ///
    /// # Errors
    /// As [`Store::open`], and when it cannot be written.
    pub fn show_everything(&mut self) -> io::Result<()> {
        let [directory] = &self.sources[..] else { return Ok(()) };
        for decision in self.decisions.iter().filter(|decision| decision.is_limit()) {
            decision.take_back(directory)?;
        }
        self.load()
    }

    /// Decides what counts of jobs that nobody serves any more, if some of their nodes have not ended, and sees it so
    /// from here on. Whoever begins on what they left must do so before it shows anything of it. Yields what is not
    /// shown because of that.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn decide(&mut self, choice: Choice, skew: Duration) -> io::Result<Option<Hidden>> {
        let is_concerned = |group: &Group<'_>| {
            (matches!(choice, Choice::Until(_)) || !group.unended().is_empty()) && !group.is_alive()
        };
        let [directory] = &self.sources[..] else { return Ok(None) };
        self.forget_decisions(directory);
        if !self.groups().iter().any(is_concerned) {
            return Ok(None);
        }
        let mut now = Store::empty(std::slice::from_ref(directory));
        let history = now.read_history()?;
        let all = steps(&history);
        let (times, mut hidden) = (times(&all), None);
        for group in now.groups().iter().filter(|group| is_concerned(group)) {
            let decided = |(aggregate, limit_ns): (&Aggregate, u64)| Decided {
                uuid: aggregate.identity.uuid,
                next_sequence: aggregate.next_sequence,
                limit_ns,
            };
            let mut aggregates: Vec<Decided> = group.limits(&times, choice, skew).map(decided).collect();
            aggregates.sort_unstable();
            let decision = Decision { lost: group.unended(), aggregates };
            Hidden::add(&mut hidden, now.hidden_by(group, &decision, &all));
            if let Err(error) = decision.write(directory) {
                // It holds for this process at least.
                log::warn!("what counts of lost nodes cannot be written to {}: {error}", directory.display());
                self.chosen.extend(decision.aggregates.iter().map(|decided| (decided.uuid, decided.limit_ns)));
            }
        }
        self.load()?;
        Ok(hidden)
    }

    /// What of a group's files a decision hides.
    fn hidden_by(&self, group: &Group<'_>, decision: &Decision, all: &[Step<'_>]) -> Option<Hidden> {
        let limits: HashMap<[u8; 16], u64> =
            decision.aggregates.iter().map(|decided| (decided.uuid, decided.limit_ns)).collect();
        let on_disk = self.limits_on_disk();
        let files = hidden_files(all.iter().filter(|step| counts(&on_disk, step)), &limits);
        let is_lost = |stage: &&Stage<'_>| decision.lost.contains(&stage.uuid);
        let mut nodes: Vec<String> = group.stages.iter().filter(is_lost).map(|stage| stage.node().to_owned()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        (files > 0).then_some(Hidden { files, nodes })
    }
}

/// How many names show something else, or nothing, if only that counts which is within these limits.
fn hidden_files<'a>(all: impl Iterator<Item = &'a Step<'a>> + Clone, limits: &HashMap<[u8; 16], u64>) -> usize {
    let view = |steps: &mut dyn Iterator<Item = &'a Step<'a>>| {
        let mut view = View::default();
        for step in steps {
            view.apply(step.id, step.segment.offset, step.record);
        }
        view
    };
    let whole = view(&mut all.clone());
    let shown = view(&mut all.filter(|step| counts(limits, step)));
    let is_file = |node: &&Node| !matches!(node, Node::Directory(_));
    let is_hidden = |(path, node): &(Vec<u8>, &Node)| is_file(node) && shown.get(path) != Some(*node);
    whole.iter().filter(is_hidden).count()
}

/// What a decision does not show of what was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Names that show something else, or nothing.
    pub files: usize,
    /// The names of the nodes that are taken for lost.
    pub nodes: Vec<String>,
}

impl Hidden {
    fn add(sum: &mut Option<Hidden>, more: Option<Hidden>) {
        match (sum.as_mut(), more) {
            (Some(sum), Some(more)) => {
                sum.files += more.files;
                sum.nodes.extend(more.nodes);
            }
            (None, more) => *sum = more,
            (Some(_), None) => {}
        }
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = match &self.nodes[..] {
            [node] => format!("node {node} was"),
            [first, rest @ ..] if rest.len() < 4 => format!("nodes {first}, {} were", rest.join(", ")),
            nodes => format!("{} nodes were", nodes.len()),
        };
        let (files, are) = match self.files {
            1 => ("1 file".to_owned(), "is"),
            files => (format!("{files} files"), "are"),
        };
        write!(
            formatter,
            "{nodes} lost: {files} that others published later {are} not shown, so that what is shown belongs together; \
             `sheaf cuts` says more, SHEAF_CUT=complete shows all"
        )
    }
}

/// A time at which everything that can be seen of a job is consistent.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The job.
    pub job: String,
    /// When the last operation before it happened; 0 if there is none.
    pub time_ns: u64,
    /// How many nodes the job has.
    pub nodes: usize,
    /// How many of them have not ended.
    pub unended: usize,
    /// The files that are complete in it, with their sizes.
    pub files: Vec<(Vec<u8>, u64)>,
    /// How many names show something else, or nothing, that were published. Only told of the newest.
    pub hidden: Option<usize>,
}

/// The consistent cuts of each job of a store, the newest first: the newest one, with what somebody was told to be
/// safe, and those after which nothing happened for longer than `skew`. No more than `most` of each job.
///
/// # Errors
/// As [`Store::open`].
pub fn cuts(sources: &[PathBuf], skew: Duration, most: usize) -> io::Result<Vec<Cut>> {
    let mut store = Store::empty(sources);
    let history = store.read_history()?;
    store.limits = store.limits_on_disk();
    let mut all = steps(&history);
    all.retain(|step| counts(&store.limits, step));
    let times = times(&all);
    let skew_ns = nanoseconds(skew);
    let mut cuts = Vec::new();
    for group in store.groups() {
        let newest_ns = group.cut_ns(&times, Choice::Newest, skew);
        let mut seen: Vec<u64> = group.told(&times).into_iter().flat_map(|node| node.times).collect();
        seen.retain(|time_ns| *time_ns <= newest_ns);
        seen.sort_unstable();
        let quiet = seen.windows(2).filter(|pair| pair[1] - pair[0] > skew_ns).map(|pair| pair[0]);
        let ends: Vec<u64> = quiet.chain([seen.last().copied().unwrap_or(0)]).collect();
        for time_ns in ends.iter().rev().take(most) {
            let is_newest = Some(time_ns) == ends.last();
            let limit = |(aggregate, limit_ns): (&Aggregate, u64)| {
                (aggregate.identity.uuid, if is_newest { limit_ns } else { *time_ns })
            };
            let limits = group.limits(&times, Choice::Newest, skew).map(limit).collect();
            let hidden = is_newest.then(|| hidden_files(all.iter(), &limits));
            cuts.push(Cut { hidden, ..group.cut_at(&store, &all, *time_ns, &limits) });
        }
    }
    Ok(cuts)
}

impl Group<'_> {
    fn cut_at(&self, store: &Store, all: &[Step<'_>], time_ns: u64, limits: &HashMap<[u8; 16], u64>) -> Cut {
        let uuids: HashSet<[u8; 16]> = self.aggregates().map(|aggregate| aggregate.identity.uuid).collect();
        let mut view = store.view.emptied();
        for step in all.iter().filter(|step| counts(limits, step)) {
            view.apply(step.id, step.segment.offset, step.record);
        }
        let file = |(path, node): (Vec<u8>, &Node)| match node {
            Node::File(version) => {
                let of = store.aggregate(version.aggregate).ok()?;
                uuids.contains(&of.identity.uuid).then_some((path, version.size))
            }
            _ => None,
        };
        Cut {
            job: self.aggregates().next().map(|aggregate| aggregate.identity.job.clone()).unwrap_or_default(),
            time_ns,
            nodes: self.nodes().len(),
            unended: self.unended().len(),
            files: view.iter().filter_map(file).collect(),
            hidden: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::Identity;

    #[test]
    fn times_are_seconds() {
        for (text, time_ns) in [("5", 5_000_000_000), ("1.5", 1_500_000_000), ("0.000000001", 1)] {
            assert_eq!(Choice::parse(text), Some(Choice::Until(time_ns)));
        }
        assert_eq!(
            (Choice::parse("newest"), Choice::parse("complete")),
            (Some(Choice::Newest), Some(Choice::Complete))
        );
        for refused in ["", "now", "-1", "1.", ".5", "1.0000000001", "99999999999999", "+1"] {
            assert_eq!(Choice::parse(refused), None, "{refused}");
        }
    }

    fn node(times: &[u64], watermark_ns: Option<u64>) -> Told {
        Told { times: times.to_vec(), watermark_ns }
    }

    #[test]
    fn a_lost_node_cuts_off_what_others_did_after_its_last_word() {
        // One file a node, a barrier, and the name of both; then again, and the second node is lost before it
        // publishes.
        let nodes = [node(&[100, 110, 200, 210], Some(300)), node(&[101], Some(150))];
        assert_eq!(newest_cut(&nodes, NO_LIMIT, 10), 150);
        // It may have done something right after its last word, by a clock that is late.
        let nodes = [node(&[100, 110, 145], Some(300)), node(&[101], Some(150))];
        assert_eq!(newest_cut(&nodes, NO_LIMIT, 10), 144);
        // A node that has ended has nothing that could be missing.
        let nodes = [node(&[100, 110, 145], Some(300)), node(&[101], None)];
        assert_eq!(newest_cut(&nodes, NO_LIMIT, 10), 300);
        // Before that, all of it is too close together.
        assert_eq!((newest_cut(&nodes, 144, 10), newest_cut(&nodes, 109, 10)), (144, 99));
        // What one node does needs no distance from itself, only from the other's.
        assert_eq!(newest_cut(&[node(&[1, 2, 3, 4, 5], None), node(&[30], None)], 3, 10), 3);
        assert_eq!(newest_cut(&[node(&[1, 2, 3, 4, 5], None), node(&[6], None)], 3, 2), 3);
        assert_eq!(newest_cut(&[node(&[1, 2, 3, 4, 5], None), node(&[4], None)], 3, 2), 1);
    }

    #[test]
    fn without_a_quiet_moment_nothing_is_left() {
        let nodes = [
            node(&(0..100).map(|time| 2 * time + 5).collect::<Vec<_>>(), Some(300)),
            node(&(0..50).map(|time| 4 * time + 6).collect::<Vec<_>>(), Some(120)),
        ];
        assert!(newest_cut(&nodes, NO_LIMIT, 3) < 5);
        assert_eq!(newest_cut(&nodes, NO_LIMIT, 0), 120);
    }

    #[test]
    fn nodes_that_write_all_the_time_are_cut_for_clocks_that_agree_better() {
        // Every 4 ns, in turn, for a long time.
        let mut aggregates = Vec::new();
        let mut times = HashMap::new();
        for (number, watermark_ns) in [(1, 100_000), (2, 90_000)] {
            let identity = Identity {
                uuid: [number; 16],
                stage: [number; 16],
                watermark_ns,
                acknowledged_ns: 0,
                node: format!("n{number}"),
                job: String::new(),
                incarnation: 1,
                created_ns: 1,
            };
            times.insert(identity.uuid, (0..20_000).map(|time| 8 * time + 4 * u64::from(number)).collect());
            aggregates.push(Aggregate::new(Path::new(""), None, identity));
        }
        let stages = aggregates
            .iter()
            .map(|aggregate| Stage { uuid: aggregate.identity.stage, aggregates: vec![aggregate] })
            .collect();
        let group = Group { stages };
        for (skew_ns, earliest_ns) in [(3, 89_990), (1000, 80_000), (100, 89_000)] {
            let skew = Duration::from_nanos(skew_ns);
            let cut_ns = group.cut_ns(&times, Choice::Newest, skew);
            assert!((earliest_ns..=90_000).contains(&cut_ns), "{skew_ns}: {cut_ns}");
            assert!(group.settled_ns(&times, skew) <= cut_ns);
        }
    }

    fn is_consistent(nodes: &[Told], cut_ns: u64, skew_ns: u64) -> bool {
        nodes.iter().enumerate().all(|(one, hiding)| {
            let missing = hiding.watermark_ns.map(|watermark_ns| watermark_ns + 1);
            let hidden = hiding.times.iter().copied().filter(|time| *time > cut_ns).chain(missing).min();
            let others = nodes.iter().enumerate().filter(|(other, _)| *other != one).flat_map(|(_, node)| &node.times);
            hidden.is_none_or(|hidden| {
                hidden > cut_ns && others.filter(|time| **time <= cut_ns).all(|time| time + skew_ns < hidden)
            })
        })
    }

    proptest! {
        #[test]
        fn no_newer_cut_is_consistent(
            nodes in prop::collection::vec((prop::collection::vec(10..100u64, 0..8), prop::option::of(40..100u64)), 1..4),
            latest_ns in 5..120u64,
            skew_ns in 0..20u64,
        ) {
            let nodes: Vec<Told> = nodes.into_iter().map(|(times, watermark_ns)| Told { times, watermark_ns }).collect();
            let cut_ns = newest_cut(&nodes, latest_ns, skew_ns);
            prop_assert!(is_consistent(&nodes, cut_ns, skew_ns));
            prop_assert!((cut_ns + 1..=latest_ns).all(|newer| !is_consistent(&nodes, newer, skew_ns)));
        }
    }
}
