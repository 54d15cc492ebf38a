//! What a flush takes from a program that computes on all cores, beside what `cp` takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Size, write};
use crate::Failure;
use crate::result::{Bar, Group, Row};
use crate::site::Site;

const ALONE: &str = "computing, nothing else";
const FLUSHING: &str = "computing while Sheaf flushes";
const COPYING: &str = "computing while cp copies the same bytes, then sync";
/// How long the undisturbed rate is measured.
const ALONE_TIME: Duration = Duration::from_secs(2);

/// See the module.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let mut group = Group {
        title: format!("Steps of a program that computes on all cores, during the flush of {} MiB", size.bytes() >> 20),
        target: site.target.describe(),
        rows: [ALONE, FLUSHING, COPYING].iter().map(|what| Row::new(what, "steps/s")).collect(),
        ratios: Vec::new(),
    };
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        one_round(site, size, &mut group)?;
    }
    group.compare("slowdown by the flush", ALONE, FLUSHING, Some(Bar::AtMost(1.03)));
    group.compare("slowdown by cp", ALONE, COPYING, None);
    Ok(group)
}

fn one_round(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    let alone = rate_during(|| {
        std::thread::sleep(ALONE_TIME);
        Ok(())
    })?;
    group.row(ALONE).values.push(alone);
    let captured = site.place("ckpt")?;
    let programs = site.start(size.ranks, true, &write(&captured, 1, size.file_bytes, false))?;
    let stopped = site.stage(programs)?;
    let flushing = rate_during(|| {
        stopped.go_on();
        site.sheaf(&["wait"]).map(drop)
    });
    group.row(FLUSHING).values.push(flushing?);
    site.clear()?;
    let staged = site.stage_place("native")?;
    site.run(size.ranks, false, &write(&staged, 1, size.file_bytes, false))?;
    let (from, to) = (staged.display().to_string(), site.place("copied")?.join("data").display().to_string());
    group.row(COPYING).values.push(rate_during(|| site.copy(&["cp", "-r", &from, &to]).map(drop))?);
    std::fs::remove_dir_all(site.target.place.join("copied"))?;
    std::fs::remove_dir_all(&staged)?;
    Ok(())
}

/// Steps per second that a program on all cores makes while `something` is done.
fn rate_during(something: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| compute(&stop, &steps));
        }
        let start = Instant::now();
        let outcome = something();
        let rate = steps.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        outcome.map(|()| rate)
    })
}

/// A stencil over an array that fits a core's own cache.
fn compute(stop: &AtomicBool, steps: &AtomicU64) {
    let mut field = vec![1.0_f64; 16 * 1024];
    while !stop.load(Ordering::Relaxed) {
        for index in 1..field.len() - 1 {
            field[index] = 0.25 * field[index - 1] + 0.5 * field[index] + 0.25 * field[index + 1];
        }
        steps.fetch_add(1, Ordering::Relaxed);
    }
    std::hint::black_box(&field);
}
