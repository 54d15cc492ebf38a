//! Streams of the C library: what freopen does to them when it fails.

use std::fs;

use sheaf_tests::{Engine, Scene, process};

/// Opens streams, has freopen fail on them in every way, and closes them once more, as programs do: the C library says
/// the same errors, and its memory is whole.
const PROGRAM: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void)
{
    const char *bad[][2] = {{"ckpt/there", "wx"}, {"ckpt/missing", "r"}, {"ckpt/missing/deep", "w"}, {"ckpt", "w"},
                            {"ckpt/there/below", "r"}, {"ckpt/there", "rx,ccs=UTF-8"}, {"ckpt/there", "wx,ccs=UTF-8"}};
    FILE *there = fopen("ckpt/there", "w");
    fputs("there", there);
    fclose(there);
    for (int round = 0; round < 50; round++)
        for (unsigned n = 0; n < sizeof bad / sizeof *bad; n++) {
            FILE *stream = fopen(round % 2 ? "ckpt/stream" : "outside", "w");
            fputs("written before", stream);
            errno = 0;
            FILE *again = freopen(bad[n][0], bad[n][1], stream);
            if (round == 0)
                printf("%s %s: %d %d\n", bad[n][0], bad[n][1], again != NULL, errno);
            void *memory = malloc(472);
            fclose(again ? again : stream);
            free(memory);
        }
    char text[32] = "";
    there = fopen("ckpt/stream", "r");
    printf("%s\n", fgets(text, sizeof text, there));
    there = freopen("ckpt/there", "r", there);
    printf("%s\n", fgets(text, sizeof text, there));
    fclose(there);
    printf("%d\n", dup(0));
    return 0;
}
"#;

#[test]
fn freopen_that_fails() {
    let scene = Scene::new(Engine::IoUring);
    let (source, program) = (scene.root().join("streams.c"), scene.root().join("streams"));
    fs::write(&source, PROGRAM).expect("the scene is ours");
    process::run(scene.native_command("gcc").arg("-o").arg(&program).arg(&source)).expect_success();
    let program = program.to_str().expect("scenes have plain names");
    let native = scene.native(&[program]).expect_success();
    let captured = scene.preloaded(&[program]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
}
