//! What the fuzz targets do with an input. Everything here must hold for any bytes; a panic is a finding.
//!
//! The targets call these functions with what the fuzzer makes up; the ordinary tests (flusher/tests/seeds.rs, which
//! includes this file) with the seeds. So nothing here may need the fuzzer, nor look at the clock or leave files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use globset::GlobBuilder;
use sheaf_common::configuration::VARIABLES;
use sheaf_common::pattern::{self, components};
use sheaf_common::protocol::{self, Reply, Request};
use sheaf_common::replaced::Marker;
use sheaf_flusher::aggregate::{
    BLOCK, Index, IndexEntry, Recovered, Stop, check_name, check_record, encode_index, recover, recover_from,
};
use sheaf_flusher::settings::Settings;
use sheaf_flusher::store::{Node, Store, View};

// Only the tests take aggregates apart.
#[allow(dead_code)]
#[path = "../../tests/src/forge.rs"]
mod forge;

/// The reader of aggregates, and the namespace that comes out: bytes as they are, and with all checksums made right.
pub fn aggregate(input: &[u8]) {
    read_aggregate(input);
    let mut signed = input.to_vec();
    forge::resign(&mut signed);
    read_aggregate(&signed);
}

fn read_aggregate(bytes: &[u8]) {
    let Ok(recovered) = recover(&bytes) else { return };
    let identity = &recovered.identity;
    let mut end = BLOCK;
    for segment in &recovered.segments {
        assert_eq!(segment.offset, end);
        end += segment.length;
        for record in &segment.records {
            let within = record.data_offset.is_none_or(|offset| offset + record.entry.size <= segment.length);
            assert!(within, "data outside its segment");
            check_record(&bytes, identity, segment, record, &mut |_| {}).expect("memory can be read");
        }
    }
    assert!(end == recovered.published_end && end <= bytes.len() as u64);
    let again = recover_from(&bytes, end, recovered.next_sequence).expect("it was read before");
    assert!(again.segments.is_empty() && again.stop == recovered.stop);
    assert!(recovered.stop != Stop::End || bytes.len() as u64 - end < BLOCK);
    read_indexes(bytes, &recovered);
    resolve(recovered);
}

fn read_indexes(bytes: &[u8], recovered: &Recovered) {
    let uuid = recovered.identity.uuid;
    let sealed = Index::read(&bytes, uuid).expect("memory can be read");
    let tail = bytes.len().saturating_sub(512);
    for index in [sealed, Index::parse(uuid, bytes[tail..].to_vec())].into_iter().flatten() {
        for number in 0..index.len().min(bytes.len()) {
            let _ = index.entry(number).map(|entry| index.get(&entry.path));
        }
    }
}

/// Applies the records, and holds the namespace against itself.
fn resolve(recovered: Recovered) {
    let mut store = Store::open_all(&[]).expect("nothing is opened");
    let id = store.add_own(Path::new("/nowhere"), None, &recovered.identity).expect("it is the first");
    for segment in recovered.segments {
        store.publish(id, &segment);
    }
    let view = store.view();
    let mut entries = Vec::new();
    let mut kinds: HashMap<Vec<u8>, bool> = HashMap::new();
    for (path, node) in view.iter() {
        assert_eq!(check_name(&path, false), Ok(()), "{}", path.escape_ascii());
        let slash = path.iter().rposition(|byte| *byte == b'/');
        assert!(slash.is_none_or(|slash| kinds.get(&path[..slash]) == Some(&true)), "no directory above");
        check_node(view, &path, node);
        entries.extend(index_entry(&path, node));
        let before = kinds.insert(path, matches!(node, Node::Directory(_)));
        assert_eq!(before, None, "a name twice");
    }
    let count = entries.len();
    let encoded = encode_index(recovered.identity.uuid, BLOCK, entries).expect("inputs are small");
    let index = Index::parse(recovered.identity.uuid, encoded).expect("it was just made");
    assert_eq!(index.len(), count);
}

fn check_node(view: &View, path: &[u8], node: &Node) {
    assert_eq!(view.get(path), Some(node));
    for name in view.names(node) {
        assert_eq!(view.get(&name).and_then(Node::origin), node.origin(), "another name is another file");
    }
    assert!(view.older(path).count() <= 2);
}

fn index_entry(path: &[u8], node: &Node) -> Option<IndexEntry> {
    let Node::File(version) = node else { return None };
    Some(IndexEntry {
        path: path.to_vec(),
        kind: sheaf_flusher::aggregate::Kind::File,
        target: Vec::new(),
        attributes: version.attributes.clone(),
        size: version.size,
        data_offset: version.data_offset,
        data_crc: version.checksums.whole,
        sequence: version.sequence,
    })
}

/// Messages on the stage's socket, and the markers in the stage.
pub fn messages(input: &[u8]) {
    if let Ok(request) = Request::decode(input) {
        let (header, payload) = input.split_at(protocol::REQUEST_HEADER);
        assert_eq!(payload.len(), request.payload_length);
        assert_eq!(Request::decode(&[&request.encode()[..], payload].concat()), Ok(request));
        assert!(header.len() + request.payload_length <= protocol::REQUEST_HEADER + protocol::PAYLOAD_MAX);
        if let Some(path) = protocol::canonical_path(payload) {
            assert!(path.len() < payload.len() && !path.contains(&0));
            assert!(path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
        }
    }
    if let Ok(reply) = Reply::decode(input) {
        let payload = &input[protocol::REPLY_HEADER..];
        assert_eq!(Reply::decode(&[&reply.encode()[..], payload].concat()), Ok(reply));
    }
    if let Some(marker) = Marker::parse(input) {
        assert!(marker.path.starts_with(b"/"), "a marker of no path");
        let again = [&marker.head()[..], marker.path].concat();
        assert_eq!(Marker::parse(&again).map(|marker| marker.path.to_vec()), Some(marker.path.to_vec()));
    }
}

/// Patterns against paths, with globset as oracle: a pattern, a zero byte, a path.
pub fn patterns(input: &[u8]) {
    let (text, path) = match input.iter().position(|byte| *byte == 0) {
        Some(zero) => (&input[..zero], &input[zero + 1..]),
        None => (input, &b"/a"[..]),
    };
    let valid = pattern::validate(text).is_ok();
    let matched = pattern::matches(text, path);
    let fixed = pattern::fixed_prefix(text);
    assert!(!valid || fixed == b"/" || text.starts_with(fixed));
    let canonical = components(path).all(|name| !matches!(name, b"" | b"." | b".."));
    if !valid || !canonical || !path.starts_with(b"/") || path.len() == 1 {
        let _ = pattern::may_contain(text, path);
        return;
    }
    if matched {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        assert!(pattern::may_contain(text, &path[..slash.max(1)]), "a match where none can be");
        assert!(fixed == b"/" || path.starts_with(fixed), "a match outside the fixed prefix");
    }
    if let Some(oracle) = oracle(text, path) {
        assert_eq!(matched, oracle, "{} against {}", text.escape_ascii(), path.escape_ascii());
    }
}

/// What globset says, where it can say the same in its own words.
fn oracle(text: &[u8], path: &[u8]) -> Option<bool> {
    let plain = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    if !plain(text) || !plain(path) {
        return None;
    }
    if components(text).any(has_chained_ranges) {
        return None;
    }
    let mut names: Vec<String> = components(text).map(translate).collect();
    names.dedup_by(|next, last| next == "**" && last == "**");
    let translated = format!("/{}", names.join("/"));
    let glob = GlobBuilder::new(&translated).literal_separator(true).backslash_escape(true).build().ok()?;
    Some(glob.compile_matcher().is_match(std::str::from_utf8(path).ok()?))
}

/// One component in globset's words: it knows alternatives, lets a negated class match a slash, and reads `a**`
/// otherwise.
fn translate(component: &[u8]) -> String {
    if component == b"**" {
        return "**".to_owned();
    }
    let mut translated = String::new();
    let mut rest = component;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'*' if translated.ends_with('*') && !translated.ends_with("\\*") => {}
            b'{' | b'}' | b',' => translated.extend(['\\', byte as char]),
            b'\\' => {
                translated.extend(['\\', tail.first().map_or('\\', |next| *next as char)]);
                rest = tail.get(1..).unwrap_or_default();
            }
            b'[' => {
                let (class, after) = split_class(tail);
                // Behind everything else, so that it makes no range.
                let slash = if class.starts_with(['!', '^']) { "/" } else { "" };
                translated.push_str(&format!("[{class}{slash}]"));
                rest = after;
            }
            _ => translated.push(byte as char),
        }
    }
    translated
}

/// The text of a class, and what is behind it, from behind its `[`.
fn split_class(tail: &[u8]) -> (String, &[u8]) {
    let negation = usize::from(matches!(tail.first(), Some(b'!' | b'^')));
    let from = negation + usize::from(tail.get(negation) == Some(&b']'));
    let end = from + tail[from..].iter().position(|byte| *byte == b']').expect("the pattern is valid");
    (String::from_utf8_lossy(&tail[..end]).into_owned(), &tail[end + 1..])
}

/// Whether a class has a hyphen behind a range, as `a-c-e`, which POSIX leaves open, or ranges that begin or end with a
/// hyphen, as `--a---`, which globset reads otherwise than fnmatch(3).
fn has_chained_ranges(component: &[u8]) -> bool {
    let mut rest = component;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'\\' => tail.get(1..).unwrap_or_default(),
            b'[' => {
                let (class, after) = split_class(tail);
                let listed = class.trim_start_matches(['!', '^']);
                let behind = listed.strip_prefix('-').unwrap_or(listed);
                let inner = behind.strip_suffix('-').unwrap_or(behind);
                if inner.matches('-').count() > 1 {
                    return true;
                }
                after
            }
            _ => tail,
        };
    }
    false
}

/// The environment: the values of all variables in the order of the table, a zero byte between two.
pub fn environment(input: &[u8]) {
    let values: HashMap<&str, &[u8]> =
        VARIABLES.iter().map(|variable| variable.name).zip(input.split(|byte| *byte == 0)).collect();
    let lookup = |name: &'static str| values.get(name).map(|value| OsString::from_vec(value.to_vec()));
    match Settings::from_lookup(lookup) {
        Ok(settings) => {
            assert!(settings.store.is_absolute());
            assert!(settings.stage_tiers.iter().all(|tier| tier.is_absolute()));
            assert!(settings.log_file.is_none_or(|file| file.is_absolute()));
            assert!(settings.bandwidth != Some(0) && settings.stage_limit != Some(0));
            for text in settings.patterns.iter().chain(&settings.excludes) {
                assert!(text.starts_with(b"/"), "{}", text.escape_ascii());
                pattern::matches(text, settings.store.as_os_str().as_bytes());
            }
        }
        Err(error) => assert!(error.to_string().contains("SHEAF_"), "{error}"),
    }
}
