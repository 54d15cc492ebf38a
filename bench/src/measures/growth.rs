//! How costs grow with processes and files.

use std::path::Path;

use super::{SMALL_BYTES, checkpoint, floor, read, read_end, sparse, write};
use crate::Failure;
use crate::result::{Bar, Group, Row};
use crate::site::{Site, drop_caches, resident_mib};

/// Files that each process writes at once.
const FILES_OF_PROCESS: usize = 64;

/// See the module.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure(site: &Site, quick: bool, rounds: usize) -> Result<Group, Failure> {
    let mut group = Group {
        title: format!("Processes at once, {FILES_OF_PROCESS} files of 4 KiB each; and files known to one flusher"),
        target: site.target.describe(),
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    let processes: &[usize] = if quick { &[1, 16, 64] } else { &[1, 4, 16, 64, 256] };
    for count in processes {
        let (native, captured) = (format!("{count} processes, stage"), format!("{count} processes, Sheaf"));
        let least = format!("limit: {count} processes, stage, with a statfs for room and one look at the target");
        group.rows.extend([&native, &captured, &least].map(|what| Row::new(what, "s")));
        for _ in 0..rounds {
            let staged = site.stage_place("native")?;
            let arguments = write(&staged, FILES_OF_PROCESS, SMALL_BYTES, false);
            group.row(&native).values.push(site.run(*count, false, &arguments)?);
            std::fs::remove_dir_all(&staged)?;
            let (staged, real) = (site.stage_place("native")?, site.place("real")?);
            let arguments = floor(&staged, FILES_OF_PROCESS, SMALL_BYTES, &real);
            group.row(&least).values.push(site.run(*count, false, &arguments)?);
            std::fs::remove_dir_all(&staged)?;
            std::fs::remove_dir_all(&real)?;
            let place = site.place("ckpt")?;
            let arguments = write(&place, FILES_OF_PROCESS, SMALL_BYTES, false);
            group.row(&captured).values.push(site.run(*count, true, &arguments)?);
            site.clear()?;
        }
        let bar = (*count == 256).then_some(Bar::AtMost(1.10));
        group.compare(&format!("{count} processes, against the stage without Sheaf"), &captured, &native, bar);
        group.compare("limit of the last: with the calls that it needs", &least, &native, None);
    }
    let files: &[usize] = if quick { &[100, 10_000] } else { &[100, 10_000, 1_000_000] };
    for count in files {
        files_known(site, *count, &mut group)?;
    }
    Ok(group)
}

/// One file of growing size.
///
/// # Errors
/// When anything of it cannot be run.
pub fn measure_sizes(site: &Site, quick: bool, rounds: usize) -> Result<Group, Failure> {
    let mut group = Group {
        title: "One file, from 4 KiB to 64 GiB".to_string(),
        target: site.target.describe(),
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    let last = if quick { 64 << 20 } else { 1 << 30 };
    for (what, size_bytes, is_sparse) in [
        ("4 KiB", 4 << 10, false),
        ("1 MiB", 1 << 20, false),
        (if quick { "64 MiB" } else { "1 GiB" }, last, false),
        ("64 GiB with 2 MiB of data", 64 << 30, true),
    ] {
        let rows = [
            format!("{what}: the program writing to the stage, without Sheaf"),
            format!("{what}: the program under Sheaf"),
            format!("{what}: from its start until everything is published"),
            format!("{what}: restart, stage wiped, cold: its last MiB is read"),
        ];
        group.rows.extend(rows.iter().map(|row| Row::new(row, "s")));
        for _ in 0..rounds {
            one_file(site, (size_bytes, is_sparse), &rows, &mut group)?;
        }
    }
    Ok(group)
}

fn one_file(site: &Site, file: (u64, bool), rows: &[String; 4], group: &mut Group) -> Result<(), Failure> {
    let arguments = |place: &Path| match file {
        (size_bytes, true) => sparse(place, size_bytes),
        (size_bytes, false) => write(place, 1, size_bytes, false),
    };
    let staged = site.stage_place("native")?;
    group.row(&rows[0]).values.push(site.run(1, false, &arguments(&staged))?);
    std::fs::remove_dir_all(&staged)?;
    let [_, captured, published, restart] = rows;
    checkpoint(site, 1, (&arguments, &read_end), [captured, published, restart], group)
}

/// Once each: the figure is memory, which noise does not change.
fn files_known(site: &Site, count: usize, group: &mut Group) -> Result<(), Failure> {
    let memory = format!("flusher's resident memory with {count} files known");
    group.rows.push(Row::new(&memory, "MiB"));
    let place = site.place("ckpt")?;
    site.run(1, true, &write(&place, count, SMALL_BYTES, false))?;
    site.sheaf(&["wait"])?;
    group.row(&memory).values.push(resident_mib(site.flusher()?));
    let limit = match count {
        0..=10_000 => 32.0,
        _ => 256.0,
    };
    group.judge(&format!("resident MiB with {count} files known"), &memory, Bar::AtMost(limit));
    site.sheaf(&["drain"])?;
    site.wipe_stage()?;
    drop_caches();
    let open = format!("restart: starting a flusher and opening one of {count} files, sealed store, cold");
    group.rows.push(Row::new(&open, "s"));
    group.row(&open).values.push(site.run(1, true, &read(&place, 1))?);
    let bar = (count == 1_000_000).then_some(Bar::AtMost(0.02));
    group.judge(&format!("seconds until one of {count} files is open, cold"), &open, bar);
    site.clear()
}
