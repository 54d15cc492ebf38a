//! Streams of the C library: what freopen makes of them in all its modes, and what it does to them when it fails.

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

/// Has freopen take every kind of stream to every kind of file in every mode, and then to the same file by no path.
const EVERY_MODE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
static void use(FILE *stream, const char *what)
{
    char text[64] = "";
    struct stat seen;
    errno = 0;
    int put = fprintf(stream, "[%s]", what) < 0 || fflush(stream) != 0;
    printf(" put %d %d", put, put ? errno : 0);
    clearerr(stream);
    rewind(stream);
    size_t got = fread(text, 1, sizeof text - 1, stream);
    printf(" got %zu '%s'", got, text);
    fseek(stream, 0, SEEK_END);
    if (fstat(fileno(stream), &seen) == 0)
        printf(" size %ld mode %o links %d", (long)seen.st_size, seen.st_mode, (int)seen.st_nlink);
    puts("");
}
int main(void)
{
    const char *modes[] = {"r", "r+", "w", "w+", "a", "a+", "wx", "re", "w+be", "a+,ccs=UTF-8"};
    const char *starts[] = {"ckpt/start", "outside", "/dev/null"};
    const char *files[] = {"ckpt/stub", "ckpt/staged", "ckpt/real", "ckpt/link", "ckpt/missing", "outside", "ckpt/none/x"};
    for (unsigned m = 0; m < sizeof modes / sizeof *modes; m++)
        for (unsigned s = 0; s < sizeof starts / sizeof *starts; s++)
            for (unsigned f = 0; f < sizeof files / sizeof *files; f++) {
                FILE *stream = fopen(starts[s], "w+");
                fputs("before", stream);
                errno = 0;
                FILE *again = freopen(files[f], modes[m], stream);
                printf("%s from %s to %s: %d", modes[m], starts[s], files[f], again ? 0 : errno);
                if (again == NULL) {
                    puts("");
                    continue;
                }
                if (again != stream)
                    puts(" another stream");
                if (strchr(modes[m], ',') == NULL)
                    use(again, modes[m]);
                errno = 0;
                again = freopen(NULL, "r", again);
                printf("  by no path: %d", again ? 0 : errno);
                if (again && strchr(modes[m], ',') == NULL)
                    use(again, "no path");
                if (again)
                    fclose(again);
            }
    fflush(stdout);
    if (freopen("ckpt/output", "w", stdout) == NULL)
        return 1;
    puts("what the program says");
    return fflush(stdout) != 0;
}
"#;

#[test]
fn freopen_in_all_its_modes() {
    const OLD: &str = "printf real >ckpt/real; ln -s stub ckpt/link";
    const STUB: &str = "printf stub >ckpt/stub";
    const STAGED: &str = "printf staged >ckpt/staged";
    let scene = Scene::new(Engine::IoUring);
    let (source, program) = (scene.root().join("modes.c"), scene.root().join("modes"));
    fs::write(&source, EVERY_MODE).expect("the scene is ours");
    process::run(scene.native_command("gcc").arg("-o").arg(&program).arg(&source)).expect_success();
    let program = program.to_str().expect("scenes have plain names");
    for script in [OLD, STUB, STAGED] {
        scene.native(&["sh", "-ec", script]).expect_success();
    }
    process::run(scene.native_command("sh").args(["-ec", OLD]).current_dir(scene.captured_directory()))
        .expect_success();
    scene.preloaded(&["sh", "-ec", STUB]).expect_success();
    scene.drain();
    scene.wipe_stage();
    scene.preloaded(&["sh", "-ec", STAGED]).expect_success();
    let native = scene.native(&[program]).expect_success();
    let captured = scene.preloaded(&[program]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot());
    scene.drain();
    scene.verify();
    scene.wipe_stage();
    assert_eq!(scene.captured_snapshot(), scene.native_snapshot(), "what the aggregate yields");
}
