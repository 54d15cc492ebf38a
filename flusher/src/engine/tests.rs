//! The same tests over both engines, on a disk's file system and on tmpfs, with faults that the kernel makes.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use tempfile::TempDir;

use super::pwrite::Pwrite;
use super::uring::Uring;
use super::*;

/// Set in the process that runs one test again, alone, because what it does concerns the whole process.
const ALONE: &str = "SHEAF_TEST_ALONE";

fn engines() -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(Pwrite::new())];
    match Uring::probe() {
        Ok(engine) => engines.push(Box::new(engine)),
        Err(reason) => println!("pwrite only: {reason}"),
    }
    engines
}

/// Where the test program lies (a disk, as a rule), and tmpfs.
fn directories() -> [TempDir; 2] {
    let disk = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    [disk, PathBuf::from("/dev/shm")].map(|base| tempfile::tempdir_in(base).unwrap())
}

/// Runs `test` for every engine with a new target on every file system.
fn everywhere(test: impl Fn(&mut dyn Engine, &Arc<Target>)) {
    for mut engine in engines() {
        for directory in directories() {
            let target = Arc::new(Target::create(&directory.path().join("target")).unwrap());
            println!("{} on {}", engine.name(), directory.path().display());
            test(&mut *engine, &target);
        }
    }
}

/// Bytes that differ everywhere, so that misplaced ones show.
fn bytes(count: usize, salt: u64) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn staged(content: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all(content).unwrap();
    file
}

fn mapped(content: &[u8]) -> Arc<Mapping> {
    Arc::new(Mapping::new(staged(content).as_fd(), content.len() as u64).unwrap())
}

fn write_block(engine: &mut dyn Engine, target: &Arc<Target>, offset: u64, content: &[u8]) -> Result<(), WriteError> {
    let mut block = engine.block()?;
    assert_eq!(block.append(content), content.len());
    engine.write(target, offset, Data::Block(block))
}

/// Runs `test` in a process of its own.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let name = format!("engine::tests::{name}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([&name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the kernel refuse file content from `length` on, with EFBIG, and with a short write before that.
fn limit_file_size(length: u64) {
    // SAFETY: a signal's disposition and a limit of this process are set from values on the stack.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: length, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[test]
fn a_mapped_file_arrives_exactly() {
    let content = bytes(37 * 1024 * 1024 + 1234, 1);
    let mapping = mapped(&content);
    everywhere(|engine, target| {
        let padded = content.len().next_multiple_of(ALIGNMENT);
        target.allocate(0, 4096 + padded as u64).unwrap();
        let data = Data::Mapped { mapping: Arc::clone(&mapping), offset: 0, length: padded };
        engine.write(target, 4096, data).unwrap();
        engine.finish().unwrap();
        assert_eq!(engine.in_flight(), 0);
        target.set_length(4096 + content.len() as u64).unwrap();
        target.sync_data().unwrap();
        let written = fs::read(target.path()).unwrap();
        assert!(written[..4096].iter().all(|byte| *byte == 0) && written[4096..] == content);
    });
}

#[test]
fn a_mapping_shows_the_file() {
    for content in [bytes(5000, 3), Vec::new()] {
        let mapping = mapped(&content);
        // SAFETY: nobody else has the file.
        assert!(unsafe { mapping.bytes() } == content);
    }
}

#[test]
fn blocks_of_any_size_at_any_offset_arrive_exactly() {
    everywhere(|engine, target| {
        let mut expected = Vec::new();
        for (index, length) in [4096, 1, 8192, 511, 4095, BLOCK_SIZE, 3, BLOCK_SIZE - 5, 4096].into_iter().enumerate() {
            let content = bytes(length, index as u64 + 7);
            write_block(engine, target, expected.len() as u64, &content).unwrap();
            expected.extend(content);
        }
        engine.finish().unwrap();
        target.sync_data().unwrap();
        assert!(fs::read(target.path()).unwrap() == expected);
    });
}

#[test]
fn more_blocks_than_the_depth_are_reused_and_never_mixed_up() {
    everywhere(|engine, target| {
        for index in 0..3 * DEPTH as u64 {
            write_block(engine, target, index * 65_536, &bytes(65_536, index)).unwrap();
            assert!(engine.in_flight() <= DEPTH);
        }
        while engine.in_flight() > 0 {
            engine.wait_one().unwrap();
        }
        engine.finish().unwrap();
        let written = fs::read(target.path()).unwrap();
        for (index, chunk) in written.chunks(65_536).enumerate() {
            assert!(chunk == bytes(65_536, index as u64), "block {index}");
        }
    });
}

#[test]
fn blocks_that_the_caller_keeps_or_drops_do_not_block() {
    everywhere(|engine, target| {
        let kept: Vec<Block> = (0..2 * DEPTH).map(|_| engine.block().unwrap()).collect();
        drop(kept);
        for index in 0..DEPTH as u64 {
            let mapping = mapped(&bytes(8192, index));
            engine.write(target, index * 8192, Data::Mapped { mapping, offset: 0, length: 8192 }).unwrap();
        }
        let empty = engine.block().unwrap();
        engine.write(target, 0, Data::Block(empty)).unwrap();
        engine.finish().unwrap();
        assert_eq!(fs::read(target.path()).unwrap().len(), DEPTH * 8192);
    });
}

#[test]
fn disks_are_written_past_the_page_cache() {
    let [disk, _] = directories();
    let magic = rustix::fs::statfs(disk.path()).unwrap().f_type as u64;
    let takes_direct = [0xef53, 0x5846_5342].contains(&magic);
    let target = Target::create(&disk.path().join("t")).unwrap();
    assert!(target.is_direct() || !takes_direct, "ext4 and xfs take direct writes");
    assert!(Target::create(target.path()).is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists));
}

#[test]
fn ranges_outside_the_mapping_are_refused() {
    everywhere(|engine, target| {
        let mapping = mapped(&bytes(5000, 1));
        for (offset, length) in [(0, 8193), (8192, 1), (u64::MAX, 2)] {
            let data = Data::Mapped { mapping: Arc::clone(&mapping), offset, length };
            assert_eq!(engine.write(target, 0, data).unwrap_err().errno, Errno::INVAL);
        }
        engine.write(target, 0, Data::Mapped { mapping, offset: 4096, length: 4096 }).unwrap();
        engine.finish().unwrap();
    });
}

#[test]
fn the_first_error_is_latched_until_finish_and_the_engine_goes_on() {
    everywhere(|engine, good| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Arc::new(Target::over(Path::new("/dev/full"), full));
        let expected = WriteError { offset: 8192, errno: Errno::NOSPC, path: "/dev/full".into() };
        let result = write_block(engine, &full, 8192, &bytes(4096, 1)).and_then(|()| engine.wait_one());
        assert_eq!(result.unwrap_err(), expected);
        assert_eq!(write_block(engine, good, 0, &bytes(4096, 2)).unwrap_err(), expected);
        assert_eq!(engine.wait_one().unwrap_err(), expected);
        assert_eq!(engine.finish().unwrap_err(), expected);
        assert_eq!(engine.in_flight(), 0);
        assert!(fs::read(good.path()).unwrap().is_empty());
        write_block(engine, good, 0, &bytes(4096, 3)).unwrap();
        engine.finish().unwrap();
        assert!(fs::read(good.path()).unwrap() == bytes(4096, 3));
    });
}

#[test]
fn an_error_among_many_in_flight_leaves_nothing_in_flight() {
    everywhere(|engine, good| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Arc::new(Target::over(Path::new("/dev/full"), full));
        let mut failed = false;
        for index in 0..4 * DEPTH as u64 {
            let target = if index == 3 { &full } else { good };
            failed |= write_block(engine, target, index * BLOCK_SIZE as u64, &bytes(BLOCK_SIZE, index)).is_err();
        }
        assert!(failed, "the error shows before everything is queued");
        assert_eq!(engine.finish().unwrap_err().path, Path::new("/dev/full"));
        assert_eq!(engine.in_flight(), 0);
        engine.finish().unwrap();
    });
}

#[test]
fn a_staged_file_that_shrinks_is_an_error_and_no_crash() {
    everywhere(|engine, target| {
        let file = staged(&bytes(BLOCK_SIZE, 1));
        let mapping = Arc::new(Mapping::new(file.as_fd(), BLOCK_SIZE as u64).unwrap());
        file.set_len(0).unwrap();
        let _ = engine.write(target, 0, Data::Mapped { mapping, offset: 0, length: BLOCK_SIZE });
        assert_eq!(engine.finish().unwrap_err().errno, Errno::FAULT);
    });
}

#[test]
fn a_file_size_limit_is_met_by_a_short_write_and_then_an_error() {
    alone("a_file_size_limit_is_met_by_a_short_write_and_then_an_error", || {
        // Aligned: the short write is a direct one. Unaligned: the direct write is refused and made through the cache.
        for limit in [5 << 20, (5 << 20) + 1000] {
            everywhere(|engine, target| {
                limit_file_size(limit);
                let mapping = mapped_unlimited(&bytes(BLOCK_SIZE, 5), limit);
                let blocks = [Arc::clone(&mapping), mapping];
                for (index, mapping) in blocks.into_iter().enumerate() {
                    let offset = (index * BLOCK_SIZE) as u64;
                    let _ = engine.write(target, offset, Data::Mapped { mapping, offset: 0, length: BLOCK_SIZE });
                }
                let error = engine.finish().unwrap_err();
                assert_eq!((error.errno, error.offset), (Errno::FBIG, limit));
                let written = fs::read(target.path()).unwrap();
                let content = bytes(BLOCK_SIZE, 5);
                assert_eq!(written.len() as u64, limit);
                assert!(written[..BLOCK_SIZE] == content);
                assert!(written[BLOCK_SIZE..] == content[..written.len() - BLOCK_SIZE]);
            });
        }
    });
}

/// A mapped file that fits below the limit.
fn mapped_unlimited(content: &[u8], limit: u64) -> Arc<Mapping> {
    assert!((content.len() as u64) < limit);
    mapped(content)
}

#[test]
fn dropping_an_engine_waits_for_what_is_in_flight() {
    for mut engine in engines() {
        let [disk, _] = directories();
        let target = Arc::new(Target::create(&disk.path().join("t")).unwrap());
        for index in 0..DEPTH {
            write_block(&mut *engine, &target, (index * BLOCK_SIZE) as u64, &bytes(BLOCK_SIZE, index as u64)).unwrap();
        }
        drop(engine);
        let written = fs::read(target.path()).unwrap();
        for (index, chunk) in written.chunks(BLOCK_SIZE).enumerate() {
            assert!(chunk == bytes(BLOCK_SIZE, index as u64), "block {index}");
        }
        assert_eq!(written.len(), DEPTH * BLOCK_SIZE);
    }
}

#[test]
fn an_engine_can_be_made_by_another_thread_than_uses_it() {
    for mut engine in engines() {
        let [disk, _] = directories();
        let target = Arc::new(Target::create(&disk.path().join("t")).unwrap());
        let user = thread::spawn(move || {
            write_block(&mut *engine, &target, 0, &bytes(4096, 9)).unwrap();
            engine.finish().unwrap();
            fs::read(target.path()).unwrap()
        });
        assert!(user.join().unwrap() == bytes(4096, 9));
    }
}

/// Forbids io_uring to the calling thread, as container run times do.
fn forbid_io_uring() {
    let statement = |code: u32, jump_true, jump_false, value| libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: jump_false,
        k: value,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls concern this thread only; the filter outlives the call that copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

#[test]
fn where_io_uring_is_forbidden_pwrite_serves_and_says_why() {
    let forbidden = thread::spawn(|| {
        forbid_io_uring();
        let (mut engine, reason) = probe();
        let [disk, _] = directories();
        let target = Arc::new(Target::create(&disk.path().join("t")).unwrap());
        write_block(&mut *engine, &target, 0, &bytes(4096, 4)).unwrap();
        engine.finish().unwrap();
        assert!(fs::read(target.path()).unwrap() == bytes(4096, 4));
        (engine.name(), reason)
    });
    let (name, reason) = forbidden.join().unwrap();
    assert_eq!(name, "pwrite");
    assert!(reason.unwrap().contains("seccomp"));
}
