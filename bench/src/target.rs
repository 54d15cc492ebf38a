//! What stands for the parallel file system. Some targets need root; all that they made is gone when they are dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::Failure;

/// The kinds of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetKind {
    /// The file system of the directory that was named.
    Local,
    /// xfs on a loop device, its image in that directory.
    Xfs,
    /// ext4 on a loop device in memory, with its bandwidth capped by the block cgroup: a slow parallel file system.
    Capped,
    /// MooseFS: a metadata server, two chunk servers and a FUSE mount in a network namespace of their own.
    Moosefs,
}

/// Bandwidth of the capped target in bytes per second.
pub const CAPPED_BYTES_PER_SECOND: u64 = 100_000_000;

/// Bytes of the loop devices' images, which are sparse.
const IMAGE_BYTES: u64 = 8 << 30;

/// The network namespace and the address of MooseFS: it refuses the loopback address.
const NAMESPACE: &str = "sheaf-bench";
const ADDRESS: &str = "10.77.0.1";

impl TargetKind {
    /// All kinds, in the order in which they are measured.
    pub const ALL: [TargetKind; 4] = [TargetKind::Local, TargetKind::Xfs, TargetKind::Capped, TargetKind::Moosefs];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::Local => "local",
            TargetKind::Xfs => "xfs",
            TargetKind::Capped => "capped",
            TargetKind::Moosefs => "moosefs",
        }
    }
}

/// A target that is there.
pub struct Target {
    /// What it is.
    pub kind: TargetKind,
    /// A directory on it.
    pub place: PathBuf,
    /// Commands that remove it, in order.
    undo: Vec<Vec<String>>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// Runs a command line and yields what it printed.
fn run(line: &str) -> Result<String, Failure> {
    let words = words(line);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .output()
        .map_err(|error| format!("{}: {error}", words[0]))?;
    if !output.status.success() {
        return Err(format!("'{line}': {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

impl Target {
    /// Makes a target below `directory`.
    ///
    /// # Errors
    /// What is missing to make it here.
    pub fn make(kind: TargetKind, directory: &Path) -> Result<Target, Failure> {
        let place = directory.join(kind.name());
        // SAFETY: takes nothing.
        let is_root = unsafe { libc::geteuid() } == 0;
        if kind != TargetKind::Local && !is_root {
            return Err("needs root".into());
        }
        fs::create_dir_all(&place)?;
        let mut target = Target { kind, place: place.canonicalize()?, undo: Vec::new() };
        match kind {
            TargetKind::Local => {}
            TargetKind::Xfs => target.make_loop(&directory.join("xfs.img"), "mkfs.xfs -q -f")?,
            TargetKind::Capped => {
                let image = tempfile::Builder::new().prefix("sheaf-bench-").tempfile_in("/dev/shm")?.into_temp_path();
                let image = image.keep()?;
                target.make_loop(&image, "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard")?;
                target.cap()?;
            }
            TargetKind::Moosefs => target.make_moosefs(directory)?,
        }
        Ok(target)
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        let kind = run(&format!("stat -f -c %T {}", self.place.display())).unwrap_or_default();
        match self.kind {
            TargetKind::Local => format!("local {kind}"),
            TargetKind::Xfs => "xfs on a loop device".to_string(),
            TargetKind::Capped => {
                format!("ext4 on a loop device in memory, capped at {} MB/s", CAPPED_BYTES_PER_SECOND / 1_000_000)
            }
            TargetKind::Moosefs => "MooseFS by FUSE, metadata server and two chunk servers on this machine".to_string(),
        }
    }

    /// Operations that the metadata server has counted for this mount, where it counts them.
    pub fn metadata_operations(&self) -> Option<f64> {
        let text = fs::read_to_string(self.place.join(".stats")).ok()?;
        let counted = |line: &str| {
            let (name, count) = line.split_once(':')?;
            name.starts_with("fuse_ops.").then(|| count.trim().parse::<f64>().ok())?
        };
        let data = ["fuse_ops.read:", "fuse_ops.write:"];
        Some(text.lines().filter(|line| !data.iter().any(|name| line.starts_with(name))).filter_map(counted).sum())
    }

    fn make_loop(&mut self, image: &Path, mkfs: &str) -> Result<(), Failure> {
        fs::File::create(image)?.set_len(IMAGE_BYTES)?;
        self.undo.insert(0, words(&format!("rm -f {}", image.display())));
        // A loop device over a file system without O_DIRECT (tmpfs before Linux 6.6) does without.
        let device = run(&format!("losetup --direct-io=on -f --show {}", image.display()))
            .or_else(|_| run(&format!("losetup -f --show {}", image.display())))?;
        self.undo.insert(0, words(&format!("losetup -d {device}")));
        run(&format!("{mkfs} {device}"))?;
        run(&format!("mount -o noatime {device} {}", self.place.display()))?;
        self.undo.insert(0, words(&format!("umount {}", self.place.display())));
        Ok(())
    }

    /// The limit of the root cgroup: it also holds for writeback, whoever does it.
    fn cap(&mut self) -> Result<(), Failure> {
        let device = run(&format!("findmnt -n -o MAJ:MIN {}", self.place.display()))?;
        for direction in ["write", "read"] {
            let file = format!("/sys/fs/cgroup/blkio/blkio.throttle.{direction}_bps_device");
            fs::write(&file, format!("{device} {CAPPED_BYTES_PER_SECOND}"))
                .map_err(|error| format!("{file}: {error}; a capped target needs the version 1 block cgroup"))?;
        }
        Ok(())
    }

    fn make_moosefs(&mut self, directory: &Path) -> Result<(), Failure> {
        let base = directory.join("moosefs-servers").canonicalize().or_else(|_| {
            fs::create_dir_all(directory.join("moosefs-servers"))?;
            directory.join("moosefs-servers").canonicalize()
        })?;
        let at = base.display().to_string();
        self.undo.insert(0, words(&format!("rm -rf {at}")));
        let _ = run(&format!("ip netns delete {NAMESPACE}"));
        run(&format!("ip netns add {NAMESPACE}"))?;
        self.undo.insert(0, words(&format!("ip netns delete {NAMESPACE}")));
        let inside = format!("nsenter --net=/run/netns/{NAMESPACE}");
        run(&format!("{inside} ip link set lo up"))?;
        run(&format!("{inside} ip address add {ADDRESS}/32 dev lo"))?;
        fs::create_dir_all(base.join("master"))?;
        fs::copy("/var/lib/mfs/metadata.mfs.empty", base.join("master/metadata.mfs"))
            .map_err(|error| format!("moosefs-master is not installed: {error}"))?;
        fs::write(base.join("exports.cfg"), "* / rw,alldirs,admin,maproot=0:0,mingoal=1\n* . rw\n")?;
        fs::write(base.join("topology.cfg"), "")?;
        let common = "WORKING_USER = root\nWORKING_GROUP = root\n";
        fs::write(
            base.join("master.cfg"),
            format!(
                "{common}DATA_PATH = {at}/master\nEXPORTS_FILENAME = {at}/exports.cfg\n\
                 TOPOLOGY_FILENAME = {at}/topology.cfg\nMATOML_LISTEN_HOST = {ADDRESS}\n\
                 MATOCS_LISTEN_HOST = {ADDRESS}\nMATOCL_LISTEN_HOST = {ADDRESS}\n"
            ),
        )?;
        run(&format!("{inside} mfsmaster -c {at}/master.cfg start"))?;
        self.undo.insert(0, words(&format!("mfsmaster -c {at}/master.cfg stop")));
        for number in 0..2 {
            for name in [format!("chunks{number}"), format!("chunkserver{number}")] {
                fs::create_dir_all(base.join(name))?;
            }
            fs::write(base.join(format!("disks{number}.cfg")), format!("{at}/chunks{number}\n"))?;
            fs::write(
                base.join(format!("chunkserver{number}.cfg")),
                format!(
                    "{common}SYSLOG_IDENT = chunkserver{number}\nDATA_PATH = {at}/chunkserver{number}\n\
                     HDD_CONF_FILENAME = {at}/disks{number}.cfg\nBIND_HOST = {ADDRESS}\nMASTER_HOST = {ADDRESS}\n\
                     CSSERV_LISTEN_HOST = {ADDRESS}\nCSSERV_LISTEN_PORT = {}\n",
                    9430 + number
                ),
            )?;
            run(&format!("{inside} mfschunkserver -c {at}/chunkserver{number}.cfg start"))?;
            self.undo.insert(0, words(&format!("mfschunkserver -c {at}/chunkserver{number}.cfg stop")));
        }
        let place = self.place.display();
        run(&format!("{inside} mfsmount {place} -H {ADDRESS} -o mfsdelayedinit=0"))
            .or_else(|_| run(&format!("{inside} mfsmount {place} -H {ADDRESS}")))?;
        self.undo.insert(0, words(&format!("umount {place}")));
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        for command in std::mem::take(&mut self.undo) {
            if let Err(error) = run(&command.join(" ")) {
                eprintln!("could not clean up: {error}");
            }
        }
    }
}

/// A file system in memory that takes huge pages wherever a file has room for one.
pub struct HugePages {
    directory: tempfile::TempDir,
}

impl HugePages {
    /// Mounts one.
    ///
    /// # Errors
    /// What is missing to do so here.
    pub fn mount() -> Result<HugePages, Failure> {
        let directory = tempfile::Builder::new().prefix("sheaf-bench-huge-").tempdir()?;
        run(&format!("mount -t tmpfs -o huge=always,size=4G,mode=0700 sheaf-bench {}", directory.path().display()))?;
        Ok(HugePages { directory })
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = run(&format!("umount {}", self.directory.path().display())) {
            eprintln!("could not clean up: {error}");
        }
    }
}
