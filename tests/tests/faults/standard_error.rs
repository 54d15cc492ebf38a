//! What the library says goes to the standard error that the program was started with, and nowhere else: a program that
//! has closed it has files of its own under that number.

use std::fs;

use sheaf_tests::{Engine, Scene, process};

/// Runs a script that puts something of its own under number 2, with as much to be said as possible; yields what the
/// program was told on its own standard error.
fn said(script: &str) -> (Scene, Vec<u8>) {
    let scene = Scene::new(Engine::IoUring);
    let mut command = scene.preloaded_command("python3");
    command.env("SHEAF_LOG", "debug").args(["-c", script]);
    let stderr = process::run(&mut command).expect_success().stderr;
    (scene, stderr)
}

const WORK: &str = "
for n in range(3):
    with open(f'ckpt/state-{n}', 'w') as state: state.write('state')
os.rename('ckpt/state-0', 'ckpt/renamed'); os.unlink('ckpt/renamed')
";

#[test]
fn lines_reach_the_standard_error() {
    let (_scene, stderr) = said(&format!("import os\n{WORK}"));
    assert!(!stderr.is_empty());
}

#[test]
fn a_data_file_under_number_two_stays_whole() {
    for name in ["data", "ckpt/data"] {
        for put in ["os.close(2); assert os.open(NAME, FLAGS) == 2", "fd = os.open(NAME, FLAGS); os.dup2(fd, 2)"] {
            let put = put.replace("NAME", &format!("'{name}'")).replace("FLAGS", "os.O_WRONLY | os.O_CREAT");
            let (scene, _) = said(&format!("import os\n{put}\nos.write(2, b'begin ')\n{WORK}\nos.write(2, b'end')"));
            let bytes = match name {
                "data" => fs::read(scene.captured_directory().join(name)).expect("written"),
                _ => scene.preloaded(&["cat", name]).expect_success().stdout,
            };
            assert_eq!(String::from_utf8_lossy(&bytes), "begin end", "{name}, {put}");
        }
    }
}
