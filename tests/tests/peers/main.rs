//! Situations in which a widely used checkpoint library was seen to lose data, to hang, or to return wrong bytes as
//! right. Each is made here with Sheaf; the letters are those under which they were written down.
//!
//! Four ranks write a step each time; a restart reads what `latest` names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

use sheaf_tests::disk::{Disk, Memory};
use sheaf_tests::{Engine, Finished, Scene, process};

const ENGINES: [Engine; 2] = [Engine::IoUring, Engine::Pwrite];
const RANKS: u32 = 4;

/// What a rank's state is at a step: megabytes that no other has.
fn state(step: u32, rank: u32) -> String {
    format!("seq {} {}", step * 1_000_000 + rank * 100_000, step * 1_000_000 + rank * 100_000 + 90_000)
}

/// Writes a step, one file for each rank, and then lets `latest` name it.
fn step(number: u32) -> String {
    let ranks = (0..RANKS).map(|rank| format!("{} >ckpt/step{number}/rank{rank}", state(number, rank)));
    let ranks: Vec<_> = ranks.collect();
    format!(
        "mkdir -p ckpt/step{number}; {}; ln -s step{number} ckpt/latest.new; mv -T ckpt/latest.new ckpt/latest",
        ranks.join("; ")
    )
}

fn write(scene: &Scene, number: u32) {
    scene.preloaded(&["bash", "-c", &step(number)]).expect_success();
}

/// What a restart with this many ranks is told: for each, its bytes' sum, or that there are none.
fn restart(scene: &Scene, ranks: u32) -> Finished {
    let script = "for rank in $(seq 0 $0); do \
                      if cat ckpt/latest/rank$rank >read; then md5sum <read; else echo nothing; fi; \
                  done";
    scene.preloaded(&["bash", "-c", script, &(ranks - 1).to_string()])
}

fn sums(scene: &Scene, number: u32) -> Vec<String> {
    let script: Vec<_> = (0..RANKS).map(|rank| format!("{} | md5sum", state(number, rank))).collect();
    let sums = scene.native(&["bash", "-c", &script.join("; ")]).expect_success().text();
    sums.lines().map(str::to_string).collect()
}

fn lines(finished: &Finished) -> Vec<String> {
    finished.text().lines().map(str::to_string).collect()
}

/// A step is there for all ranks, as it was written.
fn assert_step(scene: &Scene, number: u32) {
    let restarted = restart(scene, RANKS);
    assert_eq!(lines(&restarted), sums(scene, number), "step {number}: {}", restarted.describe());
}

fn lose_the_node(scene: &Scene) {
    scene.kill_everything();
    scene.wipe_stage();
}

/// The fast copy between files refused to work between file systems of different kinds; nothing else was tried.
#[test]
fn a_stage_and_store_on_file_systems_of_different_kinds() {
    for (stage, store) in [("tmpfs", "ext4"), ("tmpfs", "xfs"), ("ext4", "xfs"), ("xfs", "ext4")] {
        let scratch = Scene::new(Engine::IoUring);
        let place = scratch.root().join("stage");
        fs::create_dir(&place).expect("the scene is ours");
        let disk = (stage != "tmpfs").then(|| Disk::new(stage, &scratch.root().join("stage.image"), &place));
        for engine in ENGINES {
            let tier = if disk.is_some() { place.clone() } else { PathBuf::from("/dev/shm") };
            let scene = Scene::staged_in(&tier, engine);
            let _store = Disk::new(store, &scene.root().join("disk"), &scene.checkpoints());
            write(&scene, 1);
            scene.drain();
            scene.verify();
            scene.assert_no_captured_files_on_pfs();
            lose_the_node(&scene);
            assert_step(&scene, 1);
            scene.kill_everything();
        }
    }
}

/// A truncated aggregate made the restart read for ever.
#[test]
fn b_aggregate_truncated_to_two_fifths() {
    for engine in ENGINES {
        let scene = Scene::new(engine);
        for number in [1, 2] {
            write(&scene, number);
        }
        scene.drain();
        lose_the_node(&scene);
        let aggregate = scene.the_aggregate();
        let file = File::options().write(true).open(&aggregate).expect("the scene is ours");
        let length = file.metadata().expect("it is open").len();
        file.set_len(length * 2 / 5).expect("the scene is ours");
        let verdict = process::run(scene.sheaf_command().arg("verify").arg(scene.store()));
        assert_eq!(verdict.status.code(), Some(1), "{}", verdict.describe());
        let restarted = lines(&restart(&scene, RANKS));
        let right = [sums(&scene, 1), sums(&scene, 2)];
        let is_right =
            |(rank, line): (usize, &String)| line == "nothing" || right.iter().any(|sums| *line == sums[rank]);
        assert!(restarted.iter().enumerate().all(is_right), "wrong bytes as right: {restarted:?}");
    }
}

/// A restart with more ranks than had written read behind the end of a table, and hung.
#[test]
fn c_more_ranks_at_restart() {
    for engine in ENGINES {
        let scene = Scene::new(engine);
        write(&scene, 1);
        scene.drain();
        lose_the_node(&scene);
        let mut expected = sums(&scene, 1);
        expected.extend(["nothing".to_string(), "nothing".to_string()]);
        assert_eq!(lines(&restart(&scene, RANKS + 2)), expected);
    }
}

/// The version that was being written was offered, with wrong bytes for one rank and errors for the others.
#[test]
fn d_flusher_killed_while_it_writes_and_the_stage_lost() {
    for (engine, calls) in
        [(Engine::IoUring, ["io_uring_enter", "fdatasync"]), (Engine::Pwrite, ["pwrite64", "fdatasync"])]
    {
        for (call, when) in [(calls[0], 1), (calls[0], 2), (calls[0], 4), (calls[1], 2), (calls[1], 3)] {
            let scene = Scene::new(engine);
            write(&scene, 1);
            scene.drain();
            let mut leaving = scene.preloaded_command("bash");
            process::run(leaving.env("SHEAF_ON_EXIT", "leave").args(["-c", &step(2)])).expect_success();
            scene.kill_flushers();
            let inject = format!("inject={call}:error=EINTR:signal=KILL:when={when}");
            let options = ["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            process::run(&mut scene.traced(&options, scene.sheaf_command().arg("wait")));
            lose_the_node(&scene);
            scene.verify();
            let restarted = lines(&restart(&scene, RANKS));
            let known = [sums(&scene, 1), sums(&scene, 2)];
            assert!(known.contains(&restarted), "{engine:?}, {call} {when}: ranks disagree: {restarted:?}");
        }
    }
}

/// A hole in one rank's data was returned as zeros, with success.
#[test]
fn e_hole_inside_a_rank_s_data() {
    for engine in ENGINES {
        let scene = Scene::new(engine);
        write(&scene, 1);
        scene.drain();
        lose_the_node(&scene);
        let aggregate = scene.the_aggregate();
        let bytes = fs::read(&aggregate).expect("the scene is ours");
        let needle = b"1243210\n1243211\n";
        let at = bytes.windows(needle.len()).position(|window| window == needle).expect("rank 2's data is in there");
        let file = File::options().write(true).open(&aggregate).expect("the scene is ours");
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open; the other arguments are integers.
        assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64 / 4096 * 4096, 65536) }, 0);
        let verdict = process::run(scene.sheaf_command().arg("verify").arg(scene.store()));
        assert_eq!(verdict.status.code(), Some(1), "{}", verdict.describe());
        let mut expected = sums(&scene, 1);
        expected[2] = "nothing".to_string();
        assert_eq!(lines(&restart(&scene, RANKS)), expected);
    }
}

/// The newest version was proposed although one rank's file was truncated or missing; the older one was not tried.
#[test]
fn f_newest_step_truncated_or_missing() {
    for (engine, keep) in [(Engine::IoUring, Some(0.5)), (Engine::Pwrite, Some(0.9)), (Engine::IoUring, None)] {
        let scene = Scene::new(engine);
        for number in [1, 2] {
            write(&scene, number);
            scene.drain();
        }
        lose_the_node(&scene);
        let by_age: BTreeMap<_, _> = scene
            .store_aggregates()
            .into_iter()
            .map(|path| (fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("ours"), path))
            .collect();
        let newest = by_age.values().next_back().expect("there are two");
        match keep {
            None => fs::remove_file(newest).expect("the scene is ours"),
            Some(part) => {
                let file = File::options().write(true).open(newest).expect("the scene is ours");
                let length = file.metadata().expect("it is open").len();
                file.set_len((length as f64 * part) as u64).expect("the scene is ours");
            }
        }
        assert_step(&scene, 1);
    }
}

/// The table of offsets lay in another file; without it the aggregate could not be read.
#[test]
fn g_nothing_left_but_the_aggregate() {
    for engine in ENGINES {
        let scene = Scene::new(engine);
        write(&scene, 1);
        scene.sheaf(&["wait"]).expect_success();
        // Killed before it can seal the aggregate with an index.
        lose_the_node(&scene);
        let aggregate = scene.the_aggregate();
        let moved = scene.root().join("moved.tar");
        fs::rename(&aggregate, &moved).expect("the scene is ours");
        fs::remove_dir_all(scene.store()).expect("the scene is ours");
        let extracted = scene.root().join("extracted");
        fs::create_dir(&extracted).expect("the scene is ours");
        process::run(Command::new("tar").arg("-xf").arg(&moved).arg("-C").arg(&extracted)).expect_success();
        let inside = extracted.join(scene.checkpoints().strip_prefix("/").expect("scenes have absolute paths"));
        let read = "for rank in 0 1 2 3; do md5sum <$0/latest/rank$rank; done";
        let read = scene.native(&["bash", "-c", read, inside.to_str().expect("plain names")]).expect_success();
        assert_eq!(lines(&read), sums(&scene, 1));

        fs::create_dir(scene.store()).expect("the scene is ours");
        fs::rename(&moved, scene.store().join("under-another-name.tar")).expect("the scene is ours");
        assert_step(&scene, 1);
    }
}

/// A checkpoint that did not fit into the stage failed, and nothing was freed.
#[test]
fn h_stage_full() {
    const STAGE_BYTES: u64 = 24 << 20;
    // Nearly three times what the stage holds.
    let write = "for rank in 0 1 2 3; do \
                     head -c 16777216 /dev/zero | tr '\\0' $rank | \
                         dd of=ckpt/rank$rank bs=1M iflag=fullblock status=none || exit 1; \
                 done";
    for engine in ENGINES {
        let scene = Scene::new(engine);
        let _stage = Memory::new(STAGE_BYTES, scene.tier());
        scene.native(&["bash", "-c", write]).expect_success();
        // It waits for room for as long as it takes, so that nothing has to go past the stage.
        let mut program = scene.preloaded_command("bash");
        process::run(program.env("SHEAF_TIMEOUT", "300").args(["-c", write])).expect_success();
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
        scene.drain();
        scene.assert_no_captured_files_on_pfs();
        lose_the_node(&scene);
        assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    }
}
