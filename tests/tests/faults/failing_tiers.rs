//! A further tier that fails or hangs itself: nobody waits for it who need not, nothing that it holds is lost or taken
//! for missing, and what it cannot take waits in the first tier.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::process::Command;
use std::time::{Duration, Instant};

use sheaf_tests::disk::Memory;
use sheaf_tests::scene::{artefact, workspace};
use sheaf_tests::unreliable::Unreliable;
use sheaf_tests::{Engine, Scene, process, seccomp};

use super::strangers::STRANGER;
use super::tiers::{SCRIPTS, SLOW, assert_recovers, await_spooled, is_acknowledged, preloaded_in_little_room, status};
use super::unread::{EIO, reader};

/// A scene of which the store and the further tier fail where they are told to. They go first: whoever waits for them
/// gets an error then.
struct Failing {
    store: Unreliable,
    tier: Unreliable,
    scene: Scene,
}

impl Failing {
    /// The store takes nothing, so that everything goes to the further tier.
    fn new(engine: Engine) -> Failing {
        let scene = Scene::with_further_tier(engine);
        let store = Unreliable::new(scene.root(), &scene.checkpoints());
        let tier = Unreliable::new(&scene.root().join("tier"), &scene.further_tier());
        store.rule("fsync * hang");
        Failing { store, tier, scene }
    }

    /// Writes what the tests of tiers write first, on both sides.
    fn write(&self) {
        self.both(SCRIPTS[0].0);
    }

    fn both(&self, script: &str) {
        self.scene.native(&["bash", "-ec", script]).expect_success();
        preloaded_in_little_room(&self.scene, script);
    }

    /// The same, and waits until it is in the further tier.
    fn spool(&self) {
        self.write();
        await_spooled(&self.scene, SCRIPTS[0].1);
    }

    /// Waits until the flusher says that something is wrong with the further tier, or that nothing is.
    fn await_told(&self, is_wrong: bool) {
        let further = self.scene.further_tier();
        let is_named = |error: &str| error.contains(further.to_str().expect("plain"));
        await_true("told", || status(&self.scene)["error"].as_str().is_some_and(is_named) == is_wrong);
    }

    fn drain(&self) {
        self.scene.drain();
    }

    /// What is in one of the files.
    fn state_4(&self) -> Vec<u8> {
        fs::read(self.scene.native_directory().join("ckpt/state-4")).expect("the scene is ours")
    }

    /// Everything that programs see is what they have written.
    fn assert_same(&self, what: &str) {
        assert_eq!(self.scene.captured_snapshot(), self.scene.native_snapshot(), "{what}");
    }
}

/// Waits until that is so.
fn await_true(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + process::LIMIT;
    while !is_true() {
        assert!(Instant::now() < deadline, "it never comes to that: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// While something is written to it: the first tier keeps everything, and the store gets it as soon as it takes
/// something.
#[test]
fn a_tier_that_hangs_when_it_is_needed() {
    let all = Failing::new(Engine::IoUring);
    all.tier.rule("write * hang");
    all.write();
    all.await_told(true);
    all.assert_same("while it hangs");
    all.store.rule("");
    all.scene.sheaf(&["wait"]).expect_success();
    all.scene.sheaf(&["drain"]).expect_success();
    all.both("echo more >ckpt/more");
    all.assert_same("by the next flusher");
    all.tier.rule("");
    assert_recovers(&all.scene, "after a hang");
}

/// When it holds what nobody else has: nothing counts as published, programs go on, and who reads what it holds waits
/// for it.
#[test]
fn a_tier_that_hangs_with_what_it_holds() {
    let all = Failing::new(Engine::IoUring);
    all.spool();
    all.tier.stop();
    let reader = process::start(all.scene.preloaded_command("cat").arg("ckpt/state-4"));
    all.store.rule("");
    all.both("mkdir ckpt/next; seq 5000 >ckpt/next/first; mv ckpt/next/first ckpt/next/second");
    assert!(!is_acknowledged(&all.scene), "{}", status(&all.scene));
    all.tier.go_on();
    assert!(reader.finish().expect_success().stdout == all.state_4());
    all.scene.sheaf(&["wait"]).expect_success();
    all.assert_same("after a hang");
    assert_recovers(&all.scene, "after a hang");
}

/// A flusher that starts then, with something in it: what the store has may be older, so nobody is told what is the
/// newest; but nobody hangs, and programs go on that need not know.
#[test]
fn a_tier_that_hangs_when_a_flusher_starts() {
    for memory_is_lost in [false, true] {
        let all = Failing::new(Engine::IoUring);
        // A process that is killed while it waits for an answer has everything open for as long as it does.
        all.store.rule(&format!("fsync * {}", libc::EIO));
        all.spool();
        all.scene.kill_flushers();
        all.store.rule("");
        if memory_is_lost {
            all.scene.wipe_stage();
        }
        all.tier.rule("* * hang");
        for name in ["ckpt/state-4", "ckpt/set/"] {
            let read = process::run(reader(&all.scene, &[name]).env("SHEAF_TIMEOUT", "1"));
            // It may still be in the first tier.
            let is_had = read.status.success() && !memory_is_lost;
            assert!(is_had || read.status.code() == EIO, "{memory_is_lost}, {name}: {}", read.describe());
        }
        all.await_told(true);
        if !memory_is_lost {
            all.both("echo more >ckpt/more");
        }
        assert!(!is_acknowledged(&all.scene), "{}", status(&all.scene));
        all.tier.rule("");
        all.await_told(false);
        all.assert_same("as soon as it answers");
        assert_recovers(&all.scene, "after a hang at the start");
    }
}

/// The same with nothing in it: everything goes on as without it.
#[test]
fn a_tier_that_hangs_and_holds_nothing() {
    let all = Failing::new(Engine::IoUring);
    all.spool();
    all.store.rule("");
    all.scene.sheaf(&["wait"]).expect_success();
    all.scene.kill_flushers();
    all.tier.stop();
    all.both("echo more >ckpt/more; mv ckpt/state-1 ckpt/moved; seq 1000 >>ckpt/set/small");
    all.assert_same("while it hangs");
    all.scene.sheaf(&["drain"]).expect_success();
    all.tier.go_on();
    assert_recovers(&all.scene, "after a hang");
}

/// Each call that a segment takes fails: nothing is lost, and the status says so as long as nothing can be spooled.
#[test]
fn a_tier_that_answers_with_errors() {
    let all = Failing::new(Engine::IoUring);
    all.tier.rule("create * 30");
    all.write();
    for rule in ["create * 30", "write * 5", "fsync * 5", "fallocate * 28", "rename-with-flags * 5"] {
        let before = all.tier.log().len();
        all.tier.rule(rule);
        await_true(rule, || all.tier.log()[before..].iter().any(|line| line.contains("Fail")));
        all.await_told(true);
        assert_eq!(status(&all.scene)["spooled_bytes"], 0, "{rule}");
    }
    all.assert_same("while it fails");
    // When its data is durable, and its head is not.
    all.tier.rule("fsync 2 5");
    await_spooled(&all.scene, SCRIPTS[0].1);
    all.await_told(false);
    all.store.rule("");
    assert_recovers(&all.scene, "after errors");
}

/// Somebody else fills it while a segment is being written: that is withdrawn, and the room is used when there is some
/// again.
#[test]
fn a_tier_that_is_filled_while_it_is_written_to() {
    let scene = Scene::with_further_tier(Engine::Pwrite);
    let behind = scene.root().join("tier");
    let backing = behind.join("backing");
    fs::create_dir_all(&backing).expect("the scene is ours");
    let _memory = Memory::new(24 << 20, &backing);
    let tier = Unreliable::new(&behind, &scene.further_tier());
    let store = Unreliable::new(scene.root(), &scene.checkpoints());
    store.rule("fsync * hang");
    tier.rule("write 3 hang");
    // Room cannot be reserved.
    let mut flusher = scene.sheaf_command();
    let flusher = flusher.env(SLOW[1].0, SLOW[1].1).arg("flusher");
    seccomp::forbid_reserving(flusher);
    let running = process::start(flusher);
    await_true("serving", || status(&scene)["running"] == true);
    scene.native(&["bash", "-ec", SCRIPTS[0].0]).expect_success();
    preloaded_in_little_room(&scene, SCRIPTS[0].0);
    await_true("begun", || !scene.spooled().is_empty() && tier.log().iter().any(|call| call == "write Hang"));
    let filler = backing.join("filler");
    let mut file = fs::File::create(&filler).expect("the tier is ours");
    while file.write_all(&[1; 4096]).is_ok() {}
    tier.rule("");
    await_true("withdrawn", || scene.spooled().is_empty() && status(&scene)["error"].is_string());
    assert_eq!(status(&scene)["spooled_bytes"], 0);
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    drop(file);
    fs::remove_file(&filler).expect("the tier is ours");
    await_spooled(&scene, SCRIPTS[0].1);
    store.rule("");
    assert_recovers(&scene, "filled");
    running.finish();
}

/// What the store has got stays in the further tier, because that takes no changes any more: it never comes back,
/// whatever the store drops of it.
#[test]
fn what_cannot_be_removed_does_not_come_back() {
    let all = Failing::new(Engine::IoUring);
    all.spool();
    all.tier.rule("unlink * 30");
    all.store.rule("");
    all.drain();
    let (kept, first) = (all.scene.spooled(), all.scene.store_aggregates());
    assert!(!kept.is_empty());
    all.both("rm -r ckpt/state-* ckpt/latest ckpt/set; seq 100 >ckpt/other");
    all.drain();
    for number in 0..8 {
        all.both(&format!("seq {number} 20000 >ckpt/other"));
        all.drain();
    }
    assert!(all.scene.store_aggregates().iter().all(|aggregate| !first.contains(aggregate)), "it is reclaimed");
    all.assert_same("with its first tier");
    all.drain();
    assert_eq!(all.scene.spooled(), kept);
    all.scene.wipe_stage();
    all.assert_same("without its first tier");
    all.drain();
    all.scene.wipe_stage();
    all.tier.rule("");
    assert_recovers(&all.scene, "when it takes changes again");
}

/// Another user's name is where segments would wait, or comes to be there: it is not used, and said, and nothing is
/// lost.
#[test]
fn a_tier_in_which_a_stranger_has_the_name() {
    let all = Failing::new(Engine::IoUring);
    all.store.rule(&format!("fsync * {}", libc::EIO));
    all.spool();
    all.scene.kill_flushers();
    let stages = all.scene.further_tier().join("sheaf-0");
    chown(&stages, Some(STRANGER), None).expect("we are root");
    all.both("seq 2000 >ckpt/more");
    all.await_told(true);
    let told = status(&all.scene)["error"].to_string();
    assert!(told.contains(&STRANGER.to_string()), "{told}");
    all.scene.kill_flushers();
    chown(&stages, Some(0), None).expect("we are root");
    all.store.rule("");
    all.assert_same("when it is ours again");
    assert_recovers(&all.scene, "when it is ours again");
}

/// What a job has left in a further tier, with its memory lost: the site's epilog brings it to the store.
#[test]
fn an_epilog_stores_what_is_left() {
    let all = Failing::new(Engine::IoUring);
    all.store.rule(&format!("fsync * {}", libc::EIO));
    all.spool();
    all.scene.wipe_stage();
    all.store.rule("");
    let tiers = format!("{}:{}", all.scene.tier().display(), all.scene.further_tier().display());
    let mut epilog = all.scene.native_command(workspace().join("scripts/slurm/epilog.sh"));
    epilog.env("SHEAF", artefact("sheaf")).env("SHEAF_STAGE", tiers).env("SLURM_JOB_ID", "7").env("SLURM_JOB_UID", "0");
    process::run(&mut epilog).expect_success();
    assert!(all.scene.spooled().is_empty(), "{:?}", all.scene.spooled());
    all.scene.wipe_stage();
    all.assert_same("from the store alone");
    assert_recovers(&all.scene, "from the store alone");
}

/// Two jobs of one store on a node, with first tiers of their own and one further tier: one at a time has that, and
/// nobody loses anything, also if the one that has it is lost with its memory: then the next one brings to the store
/// what it has left.
#[test]
fn two_jobs_with_one_further_tier() {
    let scene = Scene::with_further_tier(Engine::IoUring);
    let store = Unreliable::new(scene.root(), &scene.checkpoints());
    store.rule(&format!("fsync * {}", libc::EIO));
    let second = scene.tier().join("second");
    fs::create_dir(&second).expect("the tier is ours");
    let tiers = format!("{}:{}", second.display(), scene.further_tier().display());
    let of_second = |command: &mut Command| process::run(command.env("SHEAF_STAGE", &tiers)).expect_success();
    let write = |script: &str| {
        scene.native(&["bash", "-ec", script]).expect_success();
        of_second(scene.preloaded_command("bash").env(SLOW[1].0, SLOW[1].1).args(["-ec", script]));
    };
    scene.native(&["bash", "-ec", SCRIPTS[0].0]).expect_success();
    preloaded_in_little_room(&scene, SCRIPTS[0].0);
    await_spooled(&scene, SCRIPTS[0].1);
    write("mkdir -p ckpt/second; for number in 1 2 3; do seq $number 20000 >ckpt/second/$number; done");
    // The first job is lost. What it has left is not the second one's, in whose stage it would be missing.
    scene.kill_flushers();
    fs::remove_dir_all(scene.tier().join("sheaf-0")).expect("the tier is ours");
    write("mv ckpt/second/1 ckpt/second/4");
    store.rule("");
    of_second(scene.sheaf_command().arg("drain"));
    assert_recovers(&scene, "of two jobs");
}
