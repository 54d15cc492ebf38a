/* Many processes that open one file at once, and one that is interrupted all the time: `crowd write | together | interrupted`.
 *
 * Every byte that is read is checked. Nothing that the kernel does on ordinary files ends with EINTR.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGE = 24 << 20, SMALL = 300 << 10, PARTS = 40, READERS = 64 };

static unsigned char byte_at(int seed, long offset) { return (unsigned char)(offset * 7 + offset / 4096 + seed); }

static int failures;
static volatile sig_atomic_t interruptions;

static void check(int is_right, const char *what, const char *path)
{
    if (is_right)
        return;
    failures++;
    printf("%s %s: %s\n", what, path, strerror(errno));
}

static void write_file(const char *path, int seed, long size)
{
    unsigned char *bytes = malloc(size);
    for (long offset = 0; offset < size; offset++)
        bytes[offset] = byte_at(seed, offset);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    check(fd >= 0 && write(fd, bytes, size) == size && close(fd) == 0, "write", path);
    free(bytes);
}

static void read_file(const char *path, int seed, long size)
{
    unsigned char *bytes = malloc(size + 1);
    int fd = open(path, O_RDONLY);
    check(fd >= 0, "open", path);
    check(fd < 0 || read(fd, bytes, size + 1) == size, "read", path);
    for (long offset = 0; fd >= 0 && offset < size; offset++)
        if (bytes[offset] != byte_at(seed, offset)) {
            check(0, "wrong bytes in", path);
            break;
        }
    if (fd >= 0)
        close(fd);
    free(bytes);
}

static void together(void)
{
    int gate[2], good = 0, status;
    check(pipe(gate) == 0, "pipe", "");
    for (int reader = 0; reader < READERS; reader++)
        if (fork() == 0) {
            char nothing;
            close(gate[1]);
            (void)!read(gate[0], &nothing, 1);
            read_file("ckpt/large", 0, LARGE);
            fflush(stdout);
            _exit(failures != 0);
        }
    close(gate[0]);
    close(gate[1]);
    while (wait(&status) > 0)
        good += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("%d of %d\n", good, READERS);
}

static void interrupt(int signal)
{
    (void)signal;
    interruptions++;
}

static void interrupted(void)
{
    struct sigaction action = {.sa_handler = interrupt};
    struct itimerval often = {{0, 300}, {0, 300}};
    char name[64], other[64];
    struct stat seen;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int part = 0; part < PARTS; part++) {
        snprintf(name, sizeof name, "ckpt/parts-%d/part", part);
        snprintf(other, sizeof other, "ckpt/parts-%d/moved", part);
        check(stat(name, &seen) == 0 && seen.st_size == SMALL, "stat", name);
        read_file(name, part, SMALL);
        DIR *directory = opendir("ckpt");
        check(directory != NULL, "opendir", "ckpt");
        int names = 0;
        while (directory && readdir(directory))
            names++;
        check(names == PARTS + 3 || names == PARTS + 4, "readdir", "ckpt");
        if (directory)
            closedir(directory);
        check(rename(name, other) == 0, "rename", name);
        write_file(name, part + 1, SMALL);
        read_file(name, part + 1, SMALL);
        check(link(name, "ckpt/linked") == 0 && unlink("ckpt/linked") == 0, "link", name);
        check(truncate(other, 10) == 0 && chmod(other, 0600) == 0 && access(other, W_OK) == 0, "truncate", other);
    }
    often.it_value.tv_usec = 0;
    setitimer(ITIMER_REAL, &often, NULL);
    printf("interrupted: %s\n", interruptions > 0 ? "yes" : "no");
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (!strcmp(argv[1], "write")) {
        char name[64];
        write_file("ckpt/large", 0, LARGE);
        for (int part = 0; part < PARTS; part++) {
            snprintf(name, sizeof name, "ckpt/parts-%d", part);
            check(mkdir(name, 0755) == 0, "mkdir", name);
            snprintf(name, sizeof name, "ckpt/parts-%d/part", part);
            write_file(name, part, SMALL);
        }
    } else if (!strcmp(argv[1], "together")) {
        together();
    } else {
        interrupted();
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
