//! Two nodes write to one file whose disk loses its power: the archive can be walked to its end, and what either was
//! told is safe is there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sheaf_tests::disk::Disk;
use sheaf_tests::process::Running;
use sheaf_tests::scene::artefact;
use sheaf_tests::{Engine, Scene, process};

const NODES: [&str; 2] = ["one", "two"];
const ROUNDS: usize = 4;
/// `$1` is the node. Notes which of its checkpoints are acknowledged.
const PROGRAM: &str = r#"
for number in $(seq 1000); do
    seq $number $((number + 30000)) >ckpt/$1.new
    mv ckpt/$1.new ckpt/$1
    "$SHEAF" wait && echo $number >>acknowledged-$1
done
"#;

fn acknowledged(scene: &Scene, node: &str) -> u32 {
    let text = fs::read_to_string(scene.captured_directory().join(format!("acknowledged-{node}"))).unwrap_or_default();
    text.lines().last().map_or(0, |number| number.parse().expect("a number"))
}

fn start(scene: &Scene, node: &str) -> Running {
    let stage = scene.tier().join(node);
    fs::create_dir_all(&stage).expect("the tier is ours");
    let (sheaf, mut command) = (artefact("sheaf"), scene.preloaded_command("unshare"));
    command.env_remove("LD_PRELOAD").env("SHEAF_STAGE", stage).env("SHEAF", &sheaf);
    command.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", node]).arg(sheaf);
    process::start(command.args(["run", "--", "bash", "-c", PROGRAM, "program", node]))
}

fn await_moment(running: &mut [Running], mut is_there: impl FnMut() -> bool) {
    while !is_there() {
        for program in &mut *running {
            assert!(!program.wait_for(Duration::from_millis(1)), "the program ended too early");
        }
    }
}

fn walk(scene: &Scene, archive: &Path) {
    for reader in [&["tar", "-tf"][..], &["bsdtar", "-tf"], &["python3", "-m", "tarfile", "-l"]] {
        process::run(scene.native_command(reader[0]).args(&reader[1..]).arg(archive)).expect_success();
    }
}

fn round(kind: &str, engine: Engine, random: &mut StdRng) {
    let scene = Scene::new(engine).in_layout("shared:1");
    let disk = Disk::new(kind, &scene.root().join("disk"), &scene.checkpoints());
    let mut running: Vec<Running> = NODES.iter().map(|node| start(&scene, node)).collect();
    await_moment(&mut running, || NODES.iter().all(|node| acknowledged(&scene, node) > 0));
    let moment = Instant::now() + Duration::from_millis(random.random_range(0..500));
    await_moment(&mut running, || Instant::now() >= moment);
    disk.lose_power();
    drop(running);
    let counts = NODES.map(|node| acknowledged(&scene, node));
    scene.kill_everything();
    scene.wipe_stage();
    disk.recover();

    scene.verify();
    scene.store_aggregates().iter().for_each(|archive| walk(&scene, archive));
    let mut look = scene.preloaded_command("bash");
    look.env("SHEAF_CUT", "complete")
        .args(["-c", "for node in one two; do head -n 1 ckpt/$node; md5sum <ckpt/$node; done"]);
    let seen = process::run(&mut look).expect_success().text();
    let lines: Vec<&str> = seen.lines().collect();
    for (index, (node, count)) in NODES.iter().zip(counts).enumerate() {
        let number: u32 = lines[2 * index].parse().expect("each was acknowledged once");
        assert!(number >= count, "{kind}, {engine:?}, {node}: {count} was acknowledged, {number} is there");
        let expected = scene.native(&["bash", "-c", &format!("seq {number} {} | md5sum", number + 30000)]).text();
        assert_eq!(lines[2 * index + 1], expected.trim_end(), "{kind}, {engine:?}, {node}");
    }
    // And nodes go on in it.
    let again = process::run(scene.preloaded_command("bash").args(["-c", "echo again >ckpt/again"]));
    again.expect_success();
    scene.drain();
    scene.verify();
    scene.store_aggregates().iter().for_each(|archive| walk(&scene, archive));
}

#[test]
fn power_is_lost_while_two_nodes_write_to_one_file() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..ROUNDS / 2 {
        round("ext4", Engine::IoUring, &mut random);
        round("xfs", Engine::Pwrite, &mut random);
    }
}
