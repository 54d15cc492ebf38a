//! Programs on several nodes at once: what one node has published is seen on the others, and when.
//!
//! Each node is a host name and a stage of its own on this machine. The programs live all the time, and so do their
//! flushers.

mod agents;
mod histories;
mod writers;

use agents::Job;
use sheaf_tests::process;
use sheaf_tests::unreliable::Unreliable;

/// What is closed on one node is opened on another.
const CLOSE: [(&str, &str); 1] = [("SHEAF_DURABLE", "close")];

#[test]
fn what_was_closed_is_opened_elsewhere_at_once() {
    let job = Job::new(&CLOSE);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    // Both nodes have looked into the directory, and have flushers.
    here.act("write('ckpt/first', 'of here')");
    there.act("write('ckpt/second', 'of there')");
    assert_eq!(here.ask("read('ckpt/second')"), "'of there'");
    assert_eq!(there.ask("read('ckpt/first')"), "'of here'");
    for round in 0..5 {
        here.act(&format!("write('ckpt/new-{round}', 'new {round}')"));
        assert_eq!(there.ask(&format!("os.stat('ckpt/new-{round}').st_size")), "5");
        assert_eq!(there.ask(&format!("read('ckpt/new-{round}')")), format!("'new {round}'"));
        there.act(&format!("write('ckpt/first', 'of there {round}')"));
        assert_eq!(here.ask("read('ckpt/first')"), format!("'of there {round}'"));
        here.act(&format!("write('ckpt/first', 'of here {round}' * {round})"));
        assert_eq!(
            there.ask("read('ckpt/first')"),
            format!("{:?}", format!("of here {round}").repeat(round)).replace('"', "'")
        );
    }
    here.act("os.rename('ckpt/new-0', 'ckpt/moved')");
    here.act("os.remove('ckpt/new-1')");
    here.act("write('ckpt/mark', '')");
    assert_eq!(there.ask("read('ckpt/new-0')"), "ENOENT");
    assert_eq!(there.ask("os.stat('ckpt/new-1')"), "ENOENT");
    assert_eq!(there.ask("read('ckpt/moved')"), "'new 0'");
    assert_eq!(
        there.ask("sorted(os.listdir('ckpt'))"),
        "['first', 'mark', 'moved', 'new-2', 'new-3', 'new-4', 'second']"
    );
}

#[test]
fn without_durability_what_is_published_is_seen_by_who_misses_it() {
    let job = Job::new(&[]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    here.act("write('ckpt/first', 'of here')");
    there.act("write('ckpt/second', 'of there')");
    assert_eq!(there.ask("os.path.exists('ckpt/third')"), "False");
    here.act("write('ckpt/third', 'new')");
    here.act("os.symlink('third', 'ckpt/latest')");
    here.act("os.mkdir('ckpt/set')");
    here.act("write('ckpt/set/file', 'in a new directory')");
    assert_eq!(there.ask("os.listdir('ckpt/set')"), "[]");
    job.sheaf("here", &["wait"]).expect_success();
    assert_eq!(there.ask("read('ckpt/set/file')"), "'in a new directory'");
    assert_eq!(there.ask("sorted(os.listdir('ckpt/set'))"), "['file']");
    assert_eq!(there.ask("read('ckpt/latest')"), "'new'");
    // Who looks first for a name in a directory, and who makes one only where there is none.
    assert_eq!(there.ask("lock('ckpt/third', 'of there')"), "EEXIST");
    here.act("write('ckpt/log', 'first ')");
    job.sheaf("here", &["wait"]).expect_success();
    there.act("write('ckpt/log', 'second', 'a')");
    job.sheaf("there", &["wait"]).expect_success();
    // It was there already: whoever misses another name has it brought up to date.
    assert_eq!(here.ask("os.path.exists('ckpt/none')"), "False");
    assert_eq!(here.ask("read('ckpt/log')"), "'first second'");
}

#[test]
fn locks_and_polls() {
    let job = Job::new(&CLOSE);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    for round in 0..5 {
        assert_eq!(here.ask("lock('ckpt/lock', 'of here')"), "None");
        assert_eq!(there.ask("lock('ckpt/lock', 'of there')"), "EEXIST");
        assert_eq!(there.ask("read('ckpt/lock')"), "'of here'");
        there.tell(&format!("poll('ckpt/flag-{round}')"));
        here.act("os.remove('ckpt/lock')");
        here.act(&format!("write('ckpt/flag-{round}', 'free')"));
        assert_eq!(there.hear(), "'free'");
        assert_eq!(there.ask("lock('ckpt/lock', 'of there')"), "None");
        assert_eq!(here.ask("lock('ckpt/lock', 'of here')"), "EEXIST");
        there.act("os.remove('ckpt/lock')");
        there.act(&format!("write('ckpt/done-{round}', '')"));
    }
}

#[test]
fn many_that_miss_at_once() {
    let job = Job::new(&CLOSE);
    let nodes: Vec<String> = (0..4).map(|number| format!("node-{number}")).collect();
    let mut agents: Vec<_> = nodes.iter().map(|node| job.agent(node)).collect();
    for (number, agent) in agents.iter_mut().enumerate() {
        let write = format!("at_once(8, lambda n: write(f'ckpt/{number}-{{n}}', f'{number} {{n}}'))");
        assert_eq!(agent.ask(&write), format!("{:?}", ["None"; 8]).replace('"', "'"));
    }
    for agent in &mut agents {
        agent.tell("at_once(64, lambda n: read(f'ckpt/{n // 8 % 4}-{n % 8}') == f'{n // 8 % 4} {n % 8}')");
    }
    for agent in &agents {
        assert_eq!(agent.hear(), format!("{:?}", ["True"; 64]).replace('"', "'"));
    }
    job.scene.verify();
}

#[test]
fn a_file_of_two_names_is_one_elsewhere() {
    let job = Job::new(&CLOSE);
    let (mut first, mut second, mut third) = (job.agent("first"), job.agent("second"), job.agent("third"));
    first.act("os.mkdir('ckpt/a')");
    first.act("write('ckpt/turn', '')");
    third.act("write('ckpt/a/own', '')");
    first.act("write('ckpt/file', 'oldest')");
    assert_eq!(third.ask("read('ckpt/file')"), "'oldest'");
    first.act("write('ckpt/file', 'old')");
    second.act("os.link('ckpt/file', 'ckpt/a/link')");
    second.act("write('ckpt/turn', '')");
    let is_one = "os.stat('ckpt/file').st_ino == os.stat('ckpt/a/link').st_ino and read('ckpt/a/link')";
    assert_eq!(third.ask(is_one), "'old'");
    third.act("write('ckpt/file', 'new')");
    assert_eq!(third.ask("read('ckpt/a/link')"), "'new'");
    for agent in [&mut first, &mut second] {
        assert_eq!(agent.ask(is_one), "'new'");
    }
    first.act("os.remove('ckpt/file')");
    first.act("write('ckpt/turn', '')");
    assert_eq!(third.ask("read('ckpt/file')"), "ENOENT");
    assert_eq!(third.ask("read('ckpt/a/link')"), "'new'");
}

/// A store that fails or does not answer: the state is told, and the answer is what this node knows.
#[test]
fn a_store_that_cannot_be_read_anew() {
    for rule in ["open * 5", "open-directory * 5", "open * hang"] {
        let job = Job::new(&[CLOSE[0], ("SHEAF_TIMEOUT", "2")]);
        let unreliable = Unreliable::new(job.scene.root(), &job.scene.checkpoints());
        let (mut here, mut there) = (job.agent("here"), job.agent("there"));
        here.act("write('ckpt/first', 'of here')");
        there.act("write('ckpt/second', 'of there')");
        assert_eq!(here.ask("read('ckpt/second')"), "'of there'");
        there.act("write('ckpt/third', 'of there')");
        unreliable.rule(rule);
        for _ in 0..20 {
            assert_eq!(here.ask("read('ckpt/third')"), "ENOENT", "{rule}");
            assert_eq!(here.ask("read('ckpt/first')"), "'of here'", "{rule}");
        }
        if !rule.ends_with("hang") {
            let state = job.sheaf("here", &["status", "--json"]).expect_success().text();
            assert!(state.contains("cannot see what other nodes have published"), "{rule}: {state}");
        }
        unreliable.rule("");
        // A process that has waited in vain does not ask for a while; another does.
        let mut other = job.agent("here");
        assert_eq!(other.ask("read('ckpt/third')"), "'of there'", "{rule}");
        assert_eq!(other.ask("sorted(os.listdir('ckpt'))"), "['first', 'second', 'third']", "{rule}");
    }
}

/// The other node's flusher dies again and again while it appends: only whole versions are seen, and the last one in
/// the end.
#[test]
fn nothing_is_seen_of_what_a_flusher_that_died_has_left() {
    let job = Job::new(&CLOSE);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    here.act("write('ckpt/own', '')");
    there.act("write('ckpt/state', chr(65) * 300000)");
    there.tell("[write('ckpt/state', chr(65 + n) * (300000 + n)) for n in range(40)] and None");
    let whole = "(lambda text: len(set(text)) == 1 and len(text) == 300000 + ord(text[0]) - 65)(read('ckpt/state'))";
    let mut kills = 0;
    for _ in 0..60 {
        assert_eq!(here.ask(whole), "True");
        assert_eq!(here.ask("sorted(os.listdir('ckpt'))"), "['own', 'state']");
        kills += job.scene.kill_flushers_in(&job.stage("there"));
    }
    assert!(kills > 0);
    assert_eq!(there.hear(), "None");
    assert_eq!(here.ask("read('ckpt/state') == chr(65 + 39) * 300039"), "True");
    job.scene.verify();
}

/// What a cut has hidden of a job that lost a node stays hidden, however often the next job looks.
#[test]
fn what_a_cut_hides_stays_hidden() {
    let job = Job::new(&[("SHEAF_SKEW_MS", "20"), ("SHEAF_WATERMARK_MS", "20")]);
    let (mut here, mut there) = (job.agent("here"), job.agent("there"));
    there.act("write('ckpt/of-there', 'safe')");
    here.act("write('ckpt/of-here', 'safe')");
    for node in ["here", "there"] {
        job.sheaf(node, &["wait"]).expect_success();
    }
    job.scene.stop_flushers_in(&job.stage("there"));
    std::thread::sleep(std::time::Duration::from_millis(100));
    here.act("write('ckpt/later', 'depends on what is lost')");
    let later = job.scene.checkpoints().join("later");
    let deadline = std::time::Instant::now() + process::LIMIT;
    while process::run(job.scene.sheaf_command().arg("cat").arg(job.scene.store()).arg(&later)).stdout.is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is not published");
    }
    job.scene.kill_everything_in(&job.stage("there"));
    job.scene.kill_everything_in(&job.stage("here"));
    drop((here, there));
    for node in ["new", "newer"] {
        let mut agent = job.agent(node);
        for round in 0..3 {
            assert_eq!(agent.ask("read('ckpt/later')"), "ENOENT", "{node}");
            assert_eq!(agent.ask("sorted(os.listdir('ckpt'))[-2:]"), "['of-here', 'of-there']", "{node}");
            agent.act(&format!("write('ckpt/-{node}-{round}', '')"));
            job.sheaf(node, &["wait"]).expect_success();
        }
    }
    assert_eq!(job.agent("new").ask("sorted(os.listdir('ckpt'))[0]"), "'-new-0'");
    assert_eq!(job.agent("new").ask("os.path.exists('ckpt/-newer-2'), os.path.exists('ckpt/later')"), "(True, False)");
}
