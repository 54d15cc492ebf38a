//! Many files of 4 KiB: what each costs the program, how fast they are published, and what the target's metadata pays.

use std::time::Instant;

use super::{SMALL_BYTES, Size, cores, floor, take, write};
use crate::Failure;
use crate::result::{Bar, Group, Row};
use crate::site::{Site, process_cpu};
use crate::target::TargetKind;

const STAGE: &str = "one open, write and close on the stage's file system, without Sheaf";
const CAPTURED: &str = "one open, write and close under Sheaf";
const FLOOR: &str = "limit: the same on the stage, with a statfs for room and one look at the target";
const PUBLISH_RATE: &str = "published, from staged on";
const PUBLISH_CPU: &str = "flusher, processor time for each file";
const TAKE_RATE: &str = "limit: one thread opening, reading and closing as many staged files";
const DURABLE: &str = "under Sheaf, from the program's start until all is published";
const FILES: &str = "in layout `files`, from the program's start until all is published";
const DIRECT: &str = "file per process on the target, until all is synced";
const CREATED: &str = "files in the store";
const OPERATIONS: &str = "operations at the target for all files, under Sheaf";
const DIRECT_OPERATIONS: &str = "operations at the target, file per process";

/// See the module.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let rows = [
        (STAGE, "us"),
        (CAPTURED, "us"),
        (FLOOR, "us"),
        (PUBLISH_RATE, "files/s"),
        (PUBLISH_CPU, "us"),
        (TAKE_RATE, "files/s"),
        (DURABLE, "s"),
        (FILES, "s"),
        (DIRECT, "s"),
        (CREATED, "files"),
        (OPERATIONS, "operations"),
        (DIRECT_OPERATIONS, "operations"),
    ];
    let mut group = Group {
        title: format!("{} files of 4 KiB, one process", size.small_files),
        target: site.target.describe(),
        rows: rows.iter().map(|(what, unit)| Row::new(what, unit)).collect(),
        ratios: Vec::new(),
    };
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        one_round(site, size, &mut group)?;
    }
    group.rows.retain(|row| !row.values.is_empty());
    let fifth_more = Some(Bar::AtMost(1.35));
    group.compare("one captured file, against the stage without Sheaf", CAPTURED, STAGE, fifth_more);
    group.compare("limit of the last: that with the calls that it needs", FLOOR, STAGE, None);
    let more = group.row(CAPTURED).median() - group.row(STAGE).median();
    group.tell("added to each file, us", more, Some(Bar::AtMost(6.0)));
    let least = group.row(FLOOR).median() - group.row(STAGE).median();
    group.tell("limit of the last: added by these calls alone, us", least, None);
    if site.target.kind == TargetKind::Moosefs {
        group.compare("until durable: layout `files`, against `node`", FILES, DURABLE, Some(Bar::AtLeast(20.0)));
    }
    group.compare("until durable: file per process, against Sheaf", DIRECT, DURABLE, None);
    if site.target.kind == TargetKind::Local {
        group.judge("published, files per second", PUBLISH_RATE, Bar::AtLeast(100_000.0));
        group.judge("limit of the last: taking them alone, files per second", TAKE_RATE, None);
        let most = cores() as f64 * 1e6 / group.row(PUBLISH_CPU).median();
        group.tell("limit of the last: what all processors can do, files per second", most, None);
    }
    Ok(group)
}

fn one_round(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    let files = size.small_files;
    let each_us = |seconds: f64| seconds * 1e6 / files as f64;
    let staged = site.stage_place("native")?;
    group.row(STAGE).values.push(each_us(site.run(1, false, &write(&staged, files, SMALL_BYTES, false))?));
    group.row(TAKE_RATE).values.push(files as f64 / site.run(1, false, &take(&staged, files, SMALL_BYTES))?);
    std::fs::remove_dir_all(&staged)?;
    let (staged, real) = (site.stage_place("native")?, site.place("real")?);
    let seconds = site.run(1, false, &floor(&staged, files, SMALL_BYTES, &real))?;
    group.row(FLOOR).values.push(each_us(seconds));
    std::fs::remove_dir_all(&staged)?;
    std::fs::remove_dir_all(&real)?;

    let before = site.target.metadata_operations();
    let (seconds, durable) = capture(site, files)?;
    group.row(CAPTURED).values.push(each_us(seconds));
    group.row(DURABLE).values.push(durable);
    group.row(CREATED).values.push(site.store_files()? as f64);
    count_operations(site, before, group.row(OPERATIONS));
    site.clear()?;
    let (rate, cpu_us) = publish_rate(site, files)?;
    group.row(PUBLISH_RATE).values.push(rate);
    group.row(PUBLISH_CPU).values.push(cpu_us);

    if site.target.kind == TargetKind::Moosefs {
        site.set_layout("files");
        let captured = capture(site, files);
        site.clear()?;
        site.set_layout("node");
        group.row(FILES).values.push(captured?.1);
    }

    let before = site.target.metadata_operations();
    let direct = site.place("direct")?;
    let start = Instant::now();
    site.run(1, false, &write(&direct, files, SMALL_BYTES, false))?;
    site.copy(&["true"])?;
    group.row(DIRECT).values.push(start.elapsed().as_secs_f64());
    count_operations(site, before, group.row(DIRECT_OPERATIONS));
    std::fs::remove_dir_all(&direct)?;
    Ok(())
}

/// Seconds that a program under Sheaf takes for its files, and those until they are published.
fn capture(site: &Site, files: usize) -> Result<(f64, f64), Failure> {
    let captured = site.place("ckpt")?;
    let start = Instant::now();
    let seconds = site.run(1, true, &write(&captured, files, SMALL_BYTES, false))?;
    site.sheaf(&["wait"])?;
    Ok((seconds, start.elapsed().as_secs_f64()))
}

fn count_operations(site: &Site, before: Option<f64>, row: &mut Row) {
    if let (Some(before), Some(after)) = (before, site.target.metadata_operations()) {
        row.values.push(after - before);
    }
}

/// Files per second from staged to published, and the flusher's microseconds for each: it is stopped while they are
/// written.
fn publish_rate(site: &Site, files: usize) -> Result<(f64, f64), Failure> {
    let captured = site.place("ckpt")?;
    let programs = site.start(1, true, &write(&captured, files, SMALL_BYTES, false))?;
    let stopped = site.stage(programs)?;
    let (start, before) = (Instant::now(), process_cpu(stopped.flusher));
    stopped.go_on();
    site.sheaf(&["wait"])?;
    let rate = files as f64 / start.elapsed().as_secs_f64();
    let cpu_us = (process_cpu(stopped.flusher) - before) * 1e6 / files as f64;
    site.clear()?;
    Ok((rate, cpu_us))
}
