//! Random histories: nodes act in turn, and each must see what a native directory shows after the others have acted.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::CLOSE;
use super::agents::{Agent, Job};

const HISTORIES: u64 = 4;
const TURNS: usize = 12;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn file(random: &mut StdRng) -> String {
    let directory = ["ckpt", "ckpt/a", "ckpt/b", "ckpt/a/c"][random.random_range(0..4)];
    format!("{directory}/f{}", random.random_range(0..4))
}

fn directory(random: &mut StdRng) -> &'static str {
    ["ckpt/a", "ckpt/b", "ckpt/a/c", "ckpt/d"][random.random_range(0..4)]
}

/// One thing that a program does; it may fail, natively as well.
fn action(random: &mut StdRng) -> String {
    let (path, other, text) = (file(random), file(random), random.random_range(0..1_000_000));
    match random.random_range(0..16) {
        0..=4 => format!("write({path:?}, '{text}' * {})", random.random_range(0..3)),
        5 => format!("write({path:?}, '{text}', 'a')"),
        6 => format!("write({path:?}, '{text}' * 20000)"),
        7 | 8 => format!("os.rename({path:?}, {other:?})"),
        9 => format!("os.remove({path:?})"),
        10 => format!("os.symlink('f{}', {path:?})", random.random_range(0..4)),
        11 => format!("os.truncate({path:?}, 3)"),
        12 | 13 => format!("os.mkdir({:?})", directory(random)),
        14 => format!("os.rmdir({:?})", directory(random)),
        _ => format!("os.rename({:?}, {:?})", directory(random), directory(random)),
    }
}

fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let job = Job::new(&CLOSE);
    let mut native = job.native();
    let mut nodes: Vec<Agent> = (0..2 + seed % 2).map(|number| job.agent(&format!("node-{number}"))).collect();
    let mut said = Vec::new();
    let mut at = 0;
    for turn in 0..number("SHEAF_TEST_TURNS", TURNS as u64) {
        let node = &mut nodes[at];
        for _ in 0..random.random_range(1..5) {
            let action = action(&mut random);
            let expected = native.ask(&action);
            said.push(format!("node {at}: {action}: {expected}"));
            assert_eq!(node.ask(&action), expected, "seed {seed}, {said:#?}");
        }
        // What comes before a close is seen with it.
        for agent in [&mut *node, &mut native] {
            agent.act(&format!("write('ckpt/turn', '{turn}')"));
        }
        at = (at + random.random_range(1..nodes.len())) % nodes.len();
        let (expected, seen) = (native.ask("tree()"), nodes[at].ask("tree()"));
        assert_eq!(seen, expected, "node {at}, seed {seed}, {said:#?}");
    }
    drop(nodes);
    job.scene.verify();
}

#[test]
fn each_node_sees_what_the_others_have_done() {
    let first = number("SHEAF_TEST_FIRST_SEED", 1);
    for seed in first..first + number("SHEAF_TEST_ROUNDS", HISTORIES) {
        println!("seed {seed}");
        run(seed);
    }
}
