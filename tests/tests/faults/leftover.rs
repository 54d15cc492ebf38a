//! A stage that an earlier job has left, and programs that are only preloaded: they see what other nodes have published
//! since, or are told that nobody can say.

use std::fs;
use std::path::PathBuf;

use sheaf_tests::process;
use sheaf_tests::scene::artefact;

use super::nodes::Nodes;
use super::unknown::{CALLS, Installation};

fn library() -> PathBuf {
    artefact("libsheaf.so")
}

/// Two nodes: this one has an older version of `state`, and a link to it.
fn left() -> Nodes {
    let nodes = Nodes::new();
    nodes.here("mkdir ckpt/set; echo old >ckpt/state; echo old >ckpt/set/state; ln -s set ckpt/latest");
    nodes
}

/// Each of these is the first to look, after the flusher here has ended in peace or was killed.
#[test]
fn a_preloaded_program_sees_what_another_node_has_published_since() {
    let nodes = left();
    let python = "import os; print(sorted(os.listdir('ckpt')), open('ckpt/state').read())";
    let rounds: [(&str, &[&str], &str); 11] = [
        ("echo newer >ckpt/state", &["cat", "ckpt/state"], "newer\n"),
        ("echo 1 >ckpt/1", &["cat", "ckpt/1"], "1\n"),
        ("echo 22 >ckpt/2", &["stat", "-c", "%s", "ckpt/2"], "3\n"),
        ("echo 3 >ckpt/3", &["ls", "ckpt/3"], "ckpt/3\n"),
        ("echo longer >ckpt/state", &["stat", "-c", "%s", "ckpt/state"], "7\n"),
        ("echo 4 >ckpt/set/4", &["ls", "ckpt/set"], "4\nstate\n"),
        (
            "mkdir ckpt/other; echo other >ckpt/other/state; ln -sfn other ckpt/latest",
            &["cat", "ckpt/latest/state"],
            "other\n",
        ),
        (
            "echo newest >ckpt/state; echo 5 >ckpt/5",
            &["python3", "-c", python],
            "['1', '2', '3', '5', 'latest', 'other', 'set', 'state'] newest\n\n",
        ),
        ("echo 6 >ckpt/set/6", &["mv", "-v", "ckpt/set/6", "ckpt/6"], "renamed 'ckpt/set/6' -> 'ckpt/6'\n"),
        ("echo 7 >ckpt/7", &["bash", "-c", "set -o noclobber; echo mine >ckpt/7 || cat ckpt/7"], "7\n"),
        ("echo 8 >ckpt/8", &["python3", "-c", "print(open('ckpt/8', 'a').tell())"], "2\n"),
    ];
    for (number, (there, look, expected)) in rounds.iter().enumerate() {
        nodes.there(there);
        let seen = process::run(&mut nodes.preloaded_here(&library(), look)).expect_success();
        assert_eq!(seen.text(), *expected, "{look:?}");
        match number % 2 {
            0 => drop(nodes.scene.kill_flushers()),
            _ => nodes.scene.drain(),
        }
    }
    nodes.scene.verify();
}

/// As many as a job starts at once.
#[test]
fn many_at_once_start_one_flusher() {
    let nodes = left();
    nodes.there("echo newer >ckpt/state; echo new >ckpt/new");
    let installation = Installation::without_program(&nodes.scene);
    installation.add_counted(artefact("sheaf").to_str().expect("ours"));
    let storm = "for n in {1..64}; do cat ckpt/state ckpt/new & done; wait";
    let seen =
        process::run(&mut nodes.preloaded_here(&installation.library(), &["bash", "-c", storm])).expect_success();
    let mut lines: Vec<_> = seen.text().lines().map(str::to_string).collect();
    lines.sort();
    assert_eq!(lines, ["new"; 64].into_iter().chain(["newer"; 64]).collect::<Vec<_>>());
    // More than one only where one takes seconds to start.
    assert!((1..8).contains(&installation.starts()), "{}", installation.starts());
    // Nobody who looks elsewhere starts one, and who has looked does not keep it.
    nodes.scene.await_flushers();
    let starts = installation.starts();
    let elsewhere = "ls -l . >/dev/null; cat /etc/passwd >/dev/null; cd ckpt; cd ..; echo done";
    let mut command = nodes.preloaded_here(&installation.library(), &["bash", "-c", elsewhere]);
    assert_eq!(process::run(&mut command).expect_success().text(), "done\n");
    assert_eq!(installation.starts(), starts);
}

/// What the node holds is read, and said to be possibly old; what it lacks is unknown.
const ASK: &str = r"
for attempt in range(3):
    assert read('ckpt/state') == 'old\n'
    assert os.stat('ckpt/state').st_size == 4
    assert read('ckpt/latest/state') == 'old\n'
    for what, call in {
        'open': lambda: read('ckpt/new'),
        'stat': lambda: os.stat('ckpt/new'),
        'access': lambda: checked(library.access(b'ckpt/new', 0)),
        'update': lambda: os.open('ckpt/new', os.O_RDWR | os.O_CREAT),
        'exclusive': lambda: os.open('ckpt/new', os.O_RDWR | os.O_CREAT | os.O_EXCL),
        'mkdir': lambda: os.mkdir('ckpt/new'),
        'below': lambda: os.stat('ckpt/new/below'),
        'list': lambda: os.listdir('ckpt'),
        'rmdir': lambda: os.rmdir('ckpt/set'),
    }.items():
        expect(errno.EIO, what, call)
    os.stat('ckpt')
    os.stat('ckpt/set')
write('ckpt/anew', 'anew\n')
";

#[test]
fn without_a_flusher_what_another_node_may_have_published_is_unknown() {
    let nodes = left();
    nodes.there("echo newer >ckpt/state; echo new >ckpt/new");
    let installation = Installation::without_program(&nodes.scene);
    installation.add_counted("false");
    let ask = [CALLS, ASK].concat();
    let mut command = nodes.preloaded_here(&installation.library(), &["python3", "-c", &ask]);
    let finished = process::run(&mut command).expect_success();
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.contains("newer")).count(), 1, "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("EIO")).count(), 1, "{said}");
    // It does not try again for each call.
    assert!(installation.starts() <= 8, "{}", installation.starts());
    let look = ["bash", "-c", "cat ckpt/state ckpt/new ckpt/anew; ls ckpt"];
    let seen = process::run(&mut nodes.preloaded_here(&library(), &look)).expect_success();
    assert_eq!(seen.text(), "newer\nnew\nanew\nanew\nlatest\nnew\nset\nstate\n");
    nodes.scene.drain();
    nodes.scene.verify();
}

/// The flusher is killed, and none can be started: this process goes on with what it has seen.
const GO_ON: &str = r"
write('ckpt/mine', 'mine\n')
write('ready', '')
while os.path.exists('ready'):
    time.sleep(0.005)
for name in ['ckpt/state', 'ckpt/mine']:
    read(name)
expect(errno.ENOENT, 'stat', lambda: os.stat('ckpt/none'))
assert sorted(os.listdir('ckpt')) == ['latest', 'mine', 'set', 'state']
os.rename('ckpt/mine', 'ckpt/moved')
os.mkdir('ckpt/made')
write('ckpt/made/state', 'made\n')
";

#[test]
fn a_process_whose_flusher_dies_goes_on() {
    let nodes = left();
    let installation = Installation::without_program(&nodes.scene);
    installation.add_program();
    let script = [CALLS, GO_ON].concat();
    let program = process::start(&mut nodes.preloaded_here(&installation.library(), &["python3", "-c", &script]));
    let ready = nodes.scene.captured_directory().join("ready");
    let program = program.await_file(&ready);
    installation.remove_program();
    assert_eq!(nodes.scene.kill_flushers(), 1);
    fs::remove_file(ready).expect("the scene is ours");
    program.finish().expect_success();
    assert_eq!(nodes.here("cat ckpt/moved ckpt/made/state; ls ckpt"), "mine\nmade\nlatest\nmade\nmoved\nset\nstate\n");
}

/// Processes that only read do not keep the flusher; when it has ended, they look anew.
#[test]
fn a_process_that_stays_sees_what_is_published_after_its_flusher_has_ended() {
    let nodes = left();
    let script = "print(open('ckpt/state').read(), end='', flush=True)
open('ready', 'w').close()
while os.path.exists('ready'): time.sleep(0.005)
print(open('ckpt/state').read(), sorted(os.listdir('ckpt/set')))";
    let script = format!("import os, time\n{script}");
    let program = process::start(&mut nodes.preloaded_here(&library(), &["python3", "-c", &script]));
    let ready = nodes.scene.captured_directory().join("ready");
    let program = program.await_file(&ready);
    nodes.scene.await_flushers();
    nodes.there("echo newer >ckpt/state; echo new >ckpt/set/new");
    fs::remove_file(ready).expect("the scene is ours");
    assert_eq!(program.finish().expect_success().text(), "old\nnewer\n ['new', 'state']\n");
}
