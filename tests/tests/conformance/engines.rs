//! Which engine writes: io_uring where it is allowed, else pwrite, and then the reason is given once.

use std::fs;
use std::time::Duration;

use sheaf_tests::{Engine, Scene, process};

/// The engine that the flusher of a program reports, and what it logged.
fn reported(engine: Engine) -> (String, String) {
    let scene = Scene::new(engine);
    let log = scene.root().join("flusher.log");
    let mut command = scene.preloaded_command("bash");
    command.env("SHEAF_LOG", format!("warn,{}", log.display()));
    command.args(["-c", "for n in 1 2 3; do echo $n >ckpt/$n; done; echo >started; exec sleep 600"]);
    let mut program = process::start(&mut command);
    let started = scene.captured_directory().join("started");
    while !started.exists() {
        assert!(!program.wait_for(Duration::from_millis(5)), "the program ended");
    }
    scene.sheaf(&["wait"]).expect_success();
    let status = scene.sheaf(&["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("one JSON text");
    drop(program);
    scene.drain();
    let name = status["engine"].as_str().unwrap_or_else(|| panic!("no engine in {status}")).to_string();
    (name, fs::read_to_string(log).unwrap_or_default())
}

#[test]
fn io_uring_forbidden() {
    let (name, log) = reported(Engine::Pwrite);
    assert_eq!(name, "pwrite");
    assert_eq!(log.lines().filter(|line| line.contains("io_uring")).count(), 1, "said once, and why: {log}");
}

#[test]
fn io_uring_where_the_kernel_offers_it() {
    let (name, log) = reported(Engine::IoUring);
    let said = log.lines().filter(|line| line.contains("io_uring")).count();
    // A machine that forbids it altogether must say so, too.
    assert!((name == "io_uring" && said == 0) || (name == "pwrite" && said == 1), "{name}: {log}");
}
