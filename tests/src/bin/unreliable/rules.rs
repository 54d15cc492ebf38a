//! What goes wrong: a text file that the test changes while the mount is used.
//!
//! A line of `CONTROL/rules` is `CALL WHEN ACTION`. WHEN is a number (that call of this kind from now on; 1 is the
//! first) or `*`; CALL may be `*`, too. ACTION is an errno, `lost-` and an errno (the call is made, and fails all the
//! same), `short` (a write takes half), or `hang` (no answer until the rules change). With a line `everywhere` calls on
//! all files count. A line `record` keeps every write and flush in `CONTROL/record`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// How often it is looked whether a call that hangs may go on.
const LOOK: Duration = Duration::from_millis(5);

/// What a call meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails with this errno.
    Fail(i32),
    /// It is made, but its answer is lost: the caller is told this errno.
    Lose(i32),
    /// It does half of what it was asked for.
    Short,
    /// It gets no answer for now.
    Hang,
}

#[derive(Default)]
struct State {
    text: String,
    counts: HashMap<String, u64>,
    all: u64,
    record: Option<File>,
}

/// See the module.
pub struct Rules {
    path: PathBuf,
    record_path: PathBuf,
    log: Mutex<File>,
    state: Mutex<State>,
}

impl Rules {
    /// Follows the rules of a control directory.
    pub fn new(control: &Path) -> std::io::Result<Rules> {
        let log = Mutex::new(OpenOptions::new().create(true).append(true).open(control.join("log"))?);
        let (path, record_path) = (control.join("rules"), control.join("record"));
        Ok(Rules { path, record_path, log, state: Mutex::default() })
    }

    /// Counts a call and says what it meets. Returns late when it hangs.
    pub fn ask(&self, call: &str) -> Option<Action> {
        let (text, action) = self.count(call);
        let said = action.map_or_else(String::new, |action| format!(" {action:?}"));
        let _ = self.log.lock().expect("no panics").write_all(format!("{call}{said}\n").as_bytes());
        if action != Some(Action::Hang) {
            return action;
        }
        while self.read() == text {
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Whether calls beside the store count.
    pub fn is_everywhere(&self) -> bool {
        self.read().lines().any(|line| line == "everywhere")
    }

    fn read(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    fn count(&self, call: &str) -> (String, Option<Action>) {
        let text = self.read();
        let mut state = self.state.lock().expect("no panics");
        if state.text != text {
            let record = if text.contains("record") { File::create(&self.record_path).ok() } else { None };
            *state = State { text: text.clone(), record, ..State::default() };
        }
        state.all += 1;
        let all = state.all;
        let count = state.counts.entry(call.to_string()).or_default();
        *count += 1;
        let action = text.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, when, action] = words.as_slice() else { return None };
            let count = if *name == "*" { all } else { *count };
            let meets = [call, "*"].contains(name) && (*when == "*" || when.parse() == Ok(count));
            meets.then(|| match *action {
                "short" => Action::Short,
                "hang" => Action::Hang,
                number => match number.strip_prefix("lost-") {
                    Some(number) => Action::Lose(number.parse().expect("an errno")),
                    None => Action::Fail(number.parse().expect("an errno")),
                },
            })
        });
        (text, action)
    }

    /// Keeps a write, if that is wanted.
    pub fn record(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock().expect("no panics");
        if let Some(record) = &mut state.record {
            let header = [offset.to_le_bytes(), (data.len() as u64).to_le_bytes()].concat();
            record.write_all(&[&header, data].concat()).expect("the record takes everything");
        }
    }

    /// Keeps that all before was made durable.
    pub fn record_flush(&self) {
        self.record(u64::MAX, &[]);
    }
}
