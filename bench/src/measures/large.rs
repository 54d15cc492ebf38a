//! A checkpoint of a few large files: how long the program is held up, when it is published, what it costs, and
//! restart.

use std::path::Path;
use std::time::Instant;

use super::{Size, checkpoint, read, write};
use crate::Failure;
use crate::result::{Bar, Group, Row};
use crate::site::{Fio, Site, drop_caches, fio, process_cpu, resident_mib};
use crate::target::{CAPPED_BYTES_PER_SECOND, TargetKind};

const STAGE: &str = "the program writing to the stage's file system, without Sheaf";
const CAPTURED: &str = "the program under Sheaf: how long it is held up";
const PUBLISHED: &str = "from its start until everything is published";
const FLUSH: &str = "flush alone: staged to published";
const FLUSHER_CPU: &str = "flusher, processor time";
const FLUSHER_MEMORY: &str = "flusher, resident memory without the stage";
const DIRECT: &str = "the program writing to the target, not synced";
const SYNCED: &str = "the program writing to the target, fdatasync";
const FIO: &str = "fio, new file, O_DIRECT, best of 1 MiB x 16 and 4 MiB x 8, fsync";
const FIO_CPU: &str = "limit: fio writing as much from few pages of that kind, processor time";
const CHECKSUM_CPU: &str = "limit: mapping the staged pages and CRC-32C of them, processor time";
const COPIED: &str = "cp from the stage, then sync";
const COPIED_CPU: &str = "cp from the stage, processor time";
const TARRED: &str = "tar from the stage, then sync";
const RSYNCED: &str = "rsync from the stage, then sync";
const RESTART: &str = "restart: the program reading everything, stage wiped, cold";
const COLD: &str = "the program reading the same files from the target, cold";
const FIO_READ: &str = "fio reading a file of that size, O_DIRECT, cold";

/// See the module.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let seconds = [STAGE, CAPTURED, PUBLISHED, FLUSH, DIRECT, SYNCED, FIO, COPIED, TARRED, RSYNCED];
    let reading = [RESTART, COLD, FIO_READ];
    let mut rows: Vec<Row> = seconds.iter().chain(&reading).map(|what| Row::new(what, "s")).collect();
    rows.extend([FLUSHER_CPU, FIO_CPU, CHECKSUM_CPU, COPIED_CPU].map(|what| Row::new(what, "s/GiB")));
    rows.push(Row::new(FLUSHER_MEMORY, "MiB"));
    let mut group = Group {
        title: format!("{} processes, one file of {} MiB each", size.ranks, size.file_bytes >> 20),
        target: site.target.describe(),
        rows,
        ratios: Vec::new(),
    };
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        competitors(site, size, &mut group)?;
        on_stage(site, size, &mut group)?;
        let write = |place: &Path| write(place, 1, size.file_bytes, false);
        let rows = [CAPTURED, PUBLISHED, RESTART];
        checkpoint(site, size.ranks, (&write, &|place| read(place, 1)), rows, &mut group)?;
        flush_alone(site, size, &mut group)?;
    }
    compare(site, &mut group);
    Ok(group)
}

/// Right before the same is captured, and once without being timed: a virtual machine's memory that has lain idle may
/// be its host's by then, and who writes to it first waits for it to come back.
fn on_stage(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    for is_timed in [false, true] {
        let staged = site.stage_place("native")?;
        let seconds = site.run(size.ranks, false, &write(&staged, 1, size.file_bytes, false))?;
        if is_timed {
            group.row(STAGE).values.push(seconds);
        }
        std::fs::remove_dir_all(&staged)?;
    }
    Ok(())
}

/// The flusher is stopped while the files are written, so that what is timed is its work alone.
fn flush_alone(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    let captured = site.place("ckpt")?;
    let programs = site.start(size.ranks, true, &write(&captured, 1, size.file_bytes, false))?;
    let stopped = site.stage(programs)?;
    let before = process_cpu(stopped.flusher);
    let start = Instant::now();
    stopped.go_on();
    site.sheaf(&["wait"])?;
    group.row(FLUSH).values.push(start.elapsed().as_secs_f64());
    group.row(FLUSHER_CPU).values.push((process_cpu(stopped.flusher) - before) / size.gib());
    group.row(FLUSHER_MEMORY).values.push(resident_mib(stopped.flusher));
    site.clear()
}

fn competitors(site: &Site, size: &Size, group: &mut Group) -> Result<(), Failure> {
    let staged = site.stage_place("native")?;
    site.run(size.ranks, false, &write(&staged, 1, size.file_bytes, false))?;
    let from = staged.display().to_string();
    for (name, row) in [("copied", COPIED), ("tarred", TARRED), ("rsynced", RSYNCED)] {
        let to = site.place(name)?.join("data").display().to_string();
        let (seconds, cpu) = match row {
            COPIED => site.copy(&["cp", "-r", &from, &to])?,
            TARRED => site.copy(&["tar", "-cf", &to, "-C", &from, "."])?,
            _ => site.copy(&["rsync", "-r", &format!("{from}/"), &to])?,
        };
        group.row(row).values.push(seconds);
        if row == COPIED {
            group.row(COPIED_CPU).values.push(cpu / size.gib());
        }
        std::fs::remove_dir_all(site.target.place.join(name))?;
    }
    group.row(CHECKSUM_CPU).values.push(checksum_cpu(site, &staged, size)?);
    std::fs::remove_dir_all(&staged)?;
    let direct = site.place("direct")?;
    group.row(DIRECT).values.push(site.run(size.ranks, false, &write(&direct, 1, size.file_bytes, false))?);
    let direct = site.place("direct")?;
    group.row(SYNCED).values.push(site.run(size.ranks, false, &write(&direct, 1, size.file_bytes, true))?);
    drop_caches();
    group.row(COLD).values.push(site.run(size.ranks, false, &read(&direct, 1))?);
    std::fs::remove_dir_all(&direct)?;
    let (file, pages) = (site.target.place.join("fio.dat"), site.stage_place("pages")?.join("pages"));
    if let Some(best) = fio_write(&file, &pages, size.bytes()) {
        group.row(FIO).values.push(best.seconds);
        group.row(FIO_CPU).values.push(best.cpu_seconds / size.gib());
    }
    drop_caches();
    group.row(FIO_READ).values.extend(fio(&file, &pages, "read", size.bytes(), 4, 8).map(|fio| fio.seconds));
    std::fs::remove_dir_all(site.stage_place("pages")?)?;
    let _ = std::fs::remove_file(&file);
    Ok(())
}

/// Processor seconds per GiB of mapping staged files and of their checksums.
fn checksum_cpu(site: &Site, staged: &Path, size: &Size) -> Result<f64, Failure> {
    let arguments = ["checksum".to_string(), staged.display().to_string()];
    Ok(site.run(1, false, &arguments)? / size.gib())
}

/// What fio takes for a new file, with the better of two ways.
fn fio_write(file: &Path, pages: &Path, size_bytes: u64) -> Option<Fio> {
    let ways = [(1, 16), (4, 8)].into_iter().filter_map(|(block_mib, depth)| {
        let _ = std::fs::remove_file(file);
        fio(file, pages, "write", size_bytes, block_mib, depth)
    });
    ways.min_by(|one, other| one.seconds.total_cmp(&other.seconds))
}

/// The same flush from a stage with huge pages: what it costs the processors.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure_huge(site: &Site, size: &Size, rounds: usize) -> Result<Group, Failure> {
    let mut rows = vec![Row::new(FLUSH, "s"), Row::new(FIO, "s")];
    rows.extend([FLUSHER_CPU, FIO_CPU, CHECKSUM_CPU].map(|what| Row::new(what, "s/GiB")));
    rows.push(Row::new(FLUSHER_MEMORY, "MiB"));
    let mut group = Group {
        title: format!("{} files of {} MiB in a stage with huge pages", size.ranks, size.file_bytes >> 20),
        target: site.target.describe(),
        rows,
        ratios: Vec::new(),
    };
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        flush_alone(site, size, &mut group)?;
        let staged = site.stage_place("native")?;
        site.run(size.ranks, false, &write(&staged, 1, size.file_bytes, false))?;
        group.row(CHECKSUM_CPU).values.push(checksum_cpu(site, &staged, size)?);
        std::fs::remove_dir_all(&staged)?;
        let (file, pages) = (site.target.place.join("fio.dat"), site.stage_place("pages")?.join("pages"));
        if let Some(best) = fio_write(&file, &pages, size.bytes()) {
            group.row(FIO).values.push(best.seconds);
            group.row(FIO_CPU).values.push(best.cpu_seconds / size.gib());
        }
        let _ = std::fs::remove_file(&file);
        std::fs::remove_dir_all(site.stage_place("pages")?)?;
    }
    group.compare("flush throughput, against fio", FIO, FLUSH, Some(Bar::AtLeast(0.95)));
    group.judge("flusher, processor seconds per GiB", FLUSHER_CPU, Bar::AtMost(0.05));
    limit_cpu(&mut group);
    Ok(group)
}

/// What writing and checking take together, done by nobody but fio and a loop.
fn limit_cpu(group: &mut Group) {
    let value = group.row(FIO_CPU).median() + group.row(CHECKSUM_CPU).median();
    group.tell("limit of the last: fio's and the checksums' processor seconds per GiB", value, None);
}

fn compare(site: &Site, group: &mut Group) {
    group.compare("held up, against the stage without Sheaf", CAPTURED, STAGE, Some(Bar::AtMost(1.03)));
    let direct = "held up, against writing to the target with fdatasync";
    group.compare(direct, CAPTURED, SYNCED, None);
    if site.target.kind == TargetKind::Capped {
        let seconds = group.row(CAPTURED).median();
        let staged = group.row(STAGE).median();
        let synced = group.row(SYNCED).median();
        // What the bandwidths alone would give.
        let ideal = staged / synced;
        let what = format!("held up, against what {} MB/s allow, of the ideal", CAPPED_BYTES_PER_SECOND / 1_000_000);
        group.tell(&what, seconds / synced / ideal, Some(Bar::AtMost(1.05)));
    }
    group.compare("flush throughput, against fio", FIO, FLUSH, Some(Bar::AtLeast(0.95)));
    group.compare("flush time, against cp and sync", FLUSH, COPIED, None);
    group.compare("flush time, against tar and sync", FLUSH, TARRED, None);
    group.compare("flush time, against rsync and sync", FLUSH, RSYNCED, None);
    group.judge("flusher, processor seconds per GiB", FLUSHER_CPU, Bar::AtMost(0.15));
    limit_cpu(group);
    group.judge("flusher, resident MiB", FLUSHER_MEMORY, Bar::AtMost(32.0));
    group.compare("restart, against fio reading, O_DIRECT", RESTART, FIO_READ, Some(Bar::AtMost(1.10)));
    group.compare("restart, against reading the files cold", RESTART, COLD, None);
}
