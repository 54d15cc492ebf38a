//! What a flush takes from a program that computes on all cores, beside what `cp` and `fio` take; and how long programs
//! are held up beside one, as ranks are whose neighbours compute, or wait for them in a loop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Size, cores, read, write};
use crate::Failure;
use crate::result::{Bar, Group, Row};
use crate::site::{Site, drop_caches, fio};

const ALONE: &str = "computing, nothing else";
const FLUSHING: &str = "computing while Sheaf flushes";
const COPYING: &str = "computing while cp copies the same bytes, then sync";
const FIO: &str = "limit: computing while fio writes as much";
const TAKEN_BY_FLUSH: &str = "taken from it by the flush, processor time";
const TAKEN_BY_COPY: &str = "taken from it by cp, processor time";
const TAKEN_BY_FIO: &str = "limit: taken from it by fio, processor time";
/// Without Sheaf, and under it.
const WRITING: [&str; 2] = ["writing to the stage, without Sheaf", "writing under Sheaf"];
const AGAIN: [&str; 2] =
    ["writing the same again, without Sheaf", "writing the same again under Sheaf, while it is published"];
const READING: [&str; 2] = ["reading the same from the target, without Sheaf, cold", "restart, stage wiped, cold"];
/// How long the undisturbed rate is measured.
const ALONE_TIME: Duration = Duration::from_secs(2);

/// Processors are not divided among sessions as long as this lives: the flusher, which has a session of its own, would
/// have its share of them whatever its priority (sched(7), autogroups). They are not where a batch system puts jobs into
/// cgroups.
struct Undivided {
    before: Option<String>,
}

impl Undivided {
    const SETTING: &str = "/proc/sys/kernel/sched_autogroup_enabled";

    /// From here on, if this user may have that.
    fn new() -> Undivided {
        let before = std::fs::read_to_string(Undivided::SETTING).ok();
        Undivided { before: before.filter(|_| std::fs::write(Undivided::SETTING, "0").is_ok()) }
    }

    /// For titles.
    fn describe(&self) -> &'static str {
        if self.before.is_some() { "no autogroups" } else { "autogroups as the kernel has them" }
    }
}

impl Drop for Undivided {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(Undivided::SETTING, before);
        }
    }
}

/// See the module.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let undivided = Undivided::new();
    let mut rows: Vec<Row> = [ALONE, FLUSHING, COPYING, FIO].iter().map(|what| Row::new(what, "steps/s")).collect();
    rows.extend([TAKEN_BY_FLUSH, TAKEN_BY_COPY, TAKEN_BY_FIO].map(|what| Row::new(what, "s/GiB")));
    let mut group = Group {
        title: format!(
            "Steps of a program that computes on all cores, during the flush of {} MiB, {}",
            size.bytes() >> 20,
            undivided.describe()
        ),
        target: site.target.describe(),
        rows,
        ratios: Vec::new(),
    };
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        one_round(site, size, &mut group)?;
    }
    group.compare("slowdown by the flush", ALONE, FLUSHING, Some(Bar::AtMost(1.03)));
    group.compare("limit of the last: slowdown by fio", ALONE, FIO, None);
    group.compare("slowdown by cp", ALONE, COPYING, None);
    Ok(group)
}

/// How long programs are held up while another one computes on all cores.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure_beside(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let (pairs, undivided) = ([WRITING, AGAIN, READING], Undivided::new());
    let (ranks, file_mib) = (size.ranks, size.file_bytes >> 20);
    let mut group = Group {
        title: format!(
            "{ranks} x {file_mib} MiB beside a program that computes on all cores, {}",
            undivided.describe()
        ),
        target: site.target.describe(),
        rows: pairs.as_flattened().iter().map(|what| Row::new(what, "s")).collect(),
        ratios: Vec::new(),
    };
    for _ in 0..rounds {
        steps_during(|| one_round_beside(site, size, &mut group))?;
    }
    for [without, under] in pairs {
        group.compare(&format!("{under}, against without Sheaf"), under, without, None);
    }
    Ok(group)
}

fn one_round_beside(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    for (number, place) in [site.stage_place("native")?, site.place("ckpt")?].iter().enumerate() {
        for rows in [WRITING, AGAIN] {
            let seconds = site.run(size.ranks, number == 1, &write(place, 1, size.file_bytes, false))?;
            group.row(rows[number]).values.push(seconds);
        }
    }
    site.sheaf(&["drain"])?;
    site.wipe_stage()?;
    let direct = site.place("direct")?;
    site.run(size.ranks, false, &write(&direct, 1, size.file_bytes, true))?;
    for (number, place) in [&direct, &site.target.place.join("ckpt")].into_iter().enumerate() {
        drop_caches();
        group.row(READING[number]).values.push(site.run(size.ranks, number == 1, &read(place, 1))?);
    }
    std::fs::remove_dir_all(&direct)?;
    site.clear()
}

fn one_round(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    let alone = steps_during(|| {
        std::thread::sleep(ALONE_TIME);
        Ok(())
    })?;
    group.row(ALONE).values.push(alone.rate());
    let mut disturbed = |rate: &str, taken: &str, steps: Steps| {
        group.row(rate).values.push(steps.rate());
        group.row(taken).values.push(steps.taken_s(alone) / size.gib());
    };
    let captured = site.place("ckpt")?;
    let programs = site.start(size.ranks, true, &write(&captured, 1, size.file_bytes, false))?;
    let stopped = site.stage(programs)?;
    let flushing = steps_during(|| {
        stopped.go_on();
        site.sheaf(&["wait"]).map(drop)
    });
    disturbed(FLUSHING, TAKEN_BY_FLUSH, flushing?);
    site.clear()?;
    let staged = site.stage_place("native")?;
    site.run(size.ranks, false, &write(&staged, 1, size.file_bytes, false))?;
    let (from, to) = (staged.display().to_string(), site.place("copied")?.join("data").display().to_string());
    let copying = steps_during(|| site.copy(&["cp", "-r", &from, &to]).map(drop))?;
    disturbed(COPYING, TAKEN_BY_COPY, copying);
    std::fs::remove_dir_all(site.target.place.join("copied"))?;
    let (file, pages) = (site.target.place.join("fio.dat"), staged.join("pages"));
    let writing = steps_during(|| {
        fio(&file, &pages, "write", size.bytes(), 4, 8).map(drop).ok_or_else(|| "fio cannot be run".into())
    });
    if let Ok(writing) = writing {
        disturbed(FIO, TAKEN_BY_FIO, writing);
        std::fs::remove_file(&file)?;
    }
    std::fs::remove_dir_all(&staged)?;
    Ok(())
}

/// What a program on all cores did in some time.
#[derive(Clone, Copy, Debug)]
struct Steps {
    count: u64,
    seconds: f64,
}

impl Steps {
    fn rate(self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Processor seconds in which it would have made the steps that it lacks.
    fn taken_s(self, alone: Steps) -> f64 {
        (1.0 - self.rate() / alone.rate()) * self.seconds * cores() as f64
    }
}

/// Steps that a program on all cores makes while `something` is done.
fn steps_during(something: impl FnOnce() -> Result<(), Failure>) -> Result<Steps, Failure> {
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(|| compute(&stop, &steps));
        }
        let start = Instant::now();
        let outcome = something();
        let (count, seconds) = (steps.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
        stop.store(true, Ordering::Relaxed);
        outcome.map(|()| Steps { count, seconds })
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
