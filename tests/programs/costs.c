// Makes one call again and again, each time between two marks: callgrind writes down the instructions of that call alone,
// and strace shows its system calls between two getppid.
//
//   costs CALL PATH
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

// The first rounds bind symbols, start a flusher, and get to know directories.
enum { ROUNDS = 12 };

static const char *path;
static char fresh[4096];
static int fd = -1;
static FILE *stream;
static struct stat status;
static char byte;

static void open_read(void) { fd = open(path, O_RDONLY); }
static void open_create(void) { fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0644); }
static void call_stat(void) { (void)!stat(path, &status); }
static void call_lstat(void) { (void)!lstat(path, &status); }
static void call_access(void) { (void)!access(path, R_OK); }
static void call_fopen(void) { stream = fopen(path, "r"); }
static void call_read(void) { (void)!read(fd, &byte, 1); }
static void call_write(void) { (void)!write(fd, &byte, 1); }
static void call_close(void) { (void)!close(fd); fd = -1; }

static const struct {
    const char *name;
    void (*call)(void);
    int flags; // of a descriptor that the call needs; -1: none
} calls[] = {
    {"open", open_read, -1},       {"create", open_create, -1},   {"stat", call_stat, -1},
    {"lstat", call_lstat, -1},     {"access", call_access, -1},   {"fopen", call_fopen, -1},
    {"read", call_read, O_RDONLY}, {"write", call_write, O_WRONLY}, {"close", call_close, O_RDONLY},
};

static void tidy(void) {
    if (fd >= 0) close(fd);
    if (stream) fclose(stream);
    fd = -1;
    stream = NULL;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    path = arguments[2];
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (strcmp(calls[i].name, arguments[1]) != 0) continue;
        for (int round = 0; round < ROUNDS; round++) {
            // What is remembered of a directory lives some milliseconds: it is used just before.
            call_stat();
            if (calls[i].flags >= 0) fd = open(path, calls[i].flags);
            snprintf(fresh, sizeof fresh, "%s-%d", path, round);
            getppid();
            CALLGRIND_ZERO_STATS;
            calls[i].call();
            CALLGRIND_DUMP_STATS;
            getppid();
            tidy();
        }
        return 0;
    }
    return 2;
}
