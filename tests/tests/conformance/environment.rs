//! What the environment said when the program was started holds, whatever the program does to it; and it costs a
//! program that names no path nothing.

use std::fs;

use sheaf_tests::{Engine, Scene, process};

/// Empties its environment, or writes over it, before it names any path.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern char **environ;
int main(int count, char **arguments)
{
    if (!strcmp(arguments[1], "empties"))
        clearenv();
    else
        for (char **entry = environ; *entry; entry++)
            memset(*entry, 'x', strlen(*entry));
    int file = open("ckpt/state", O_WRONLY | O_CREAT, 0644);
    return file < 0 || write(file, "state", 5) != 5 || close(file);
}
"#;

#[test]
fn a_program_that_destroys_its_environment() {
    for how in ["empties", "overwrites"] {
        let scene = Scene::new(Engine::IoUring);
        let (source, program) = (scene.root().join("program.c"), scene.root().join("program"));
        fs::write(&source, PROGRAM).expect("the scene is ours");
        process::run(scene.native_command("gcc").arg("-o").arg(&program).arg(&source)).expect_success();
        process::run(scene.preloaded_command(&program).arg(how)).expect_success();
        scene.assert_no_captured_files_on_pfs();
        scene.drain();
        scene.wipe_stage();
        assert_eq!(scene.preloaded(&["cat", "ckpt/state"]).expect_success().text(), "state", "{how}");
    }
}

#[test]
fn a_program_that_names_no_path_has_none_looked_at() {
    let scene = Scene::new(Engine::IoUring);
    let log = scene.root().join("trace");
    let options = ["-qq", "-e", "trace=%file", "-o", log.to_str().expect("ours")];
    process::run(&mut scene.traced(&options, &scene.preloaded_command("/bin/true"))).expect_success();
    let text = fs::read_to_string(log).expect("strace wrote its log");
    let places = [scene.captured_directory(), scene.tier().to_path_buf()];
    let looks: Vec<_> =
        text.lines().filter(|line| places.iter().any(|p| line.contains(&*p.to_string_lossy()))).collect();
    assert!(looks.is_empty(), "{looks:?}");
}
