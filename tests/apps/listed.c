/* Lists directories by descriptor, without a stream: `listed`.
 *
 * Run natively and under the preloaded library it must print the same, so nothing may depend on the order of names.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct old_record {
    unsigned long ino, off;
    unsigned short length;
    char name[];
};

enum { FUNCTION, CALL, OLD_CALL, BASED, WAYS };
static const char *const way_names[] = {"getdents64", "SYS_getdents64", "SYS_getdents", "getdirentries"};

static char found[20000][300];
static int count;

static void forget(void) { count = 0; }

static ssize_t read_some(int way, int fd, char *buffer, size_t size)
{
    off_t base = -7;
    switch (way) {
    case FUNCTION: return getdents64(fd, buffer, size);
    case CALL: return syscall(SYS_getdents64, fd, buffer, size);
    case OLD_CALL: return syscall(SYS_getdents, fd, buffer, size);
    default: {
        off_t before = lseek(fd, 0, SEEK_CUR);
        ssize_t length = getdirentries64(fd, buffer, size, &base);
        if (length >= 0 && base != before) printf("base is not where the listing stood\n");
        if (length < 0 && base != -7) printf("base was set by a call that failed\n");
        return length;
    }
    }
}

/* Notes one portion; yields what the call did. */
static ssize_t portion(int way, int fd, size_t size, long *last_offset)
{
    static char buffer[1 << 16] __attribute__((aligned(8)));
    errno = 4711;
    ssize_t length = read_some(way, fd, buffer, size);
    if (length >= 0 && errno != 4711) printf("errno was changed\n");
    for (ssize_t at = 0; at < length;) {
        struct dirent64 *record = (void *)(buffer + at);
        struct old_record *old = (void *)record;
        const char *name = way == OLD_CALL ? old->name : record->d_name;
        int type = way == OLD_CALL ? buffer[at + old->length - 1] : record->d_type;
        struct stat seen;
        if (fstatat(fd, name, &seen, AT_SYMLINK_NOFOLLOW)) printf("%s is listed, and not there\n", name);
        else if (strcmp(name, "..") && seen.st_ino != record->d_ino) printf("%s has another inode\n", name);
        else if (type != DT_UNKNOWN && (unsigned)type != seen.st_mode >> 12) printf("%s has another type\n", name);
        if (record->d_reclen % 8) printf("%s is not aligned\n", name);
        snprintf(found[count++], sizeof found[0], "%s", name);
        if (last_offset) *last_offset = record->d_off;
        at += record->d_reclen;
    }
    return length;
}

static int all(int way, int fd, size_t size)
{
    ssize_t length;
    while ((length = portion(way, fd, size, NULL)) > 0) {}
    return length == 0 ? 0 : errno;
}

static int by_name(const void *one, const void *other) { return strcmp(one, other); }

static void say(const char *what)
{
    qsort(found, count, sizeof found[0], by_name);
    printf("%s: %d", what, count);
    for (int index = 0; index < count && count < 100; index++) printf(" %s", found[index]);
    unsigned long sum = 0;
    for (int index = 0; index < count; index++) {
        for (const char *byte = found[index]; *byte; byte++) sum = sum * 31 + (unsigned char)*byte;
        if (index && !strcmp(found[index], found[index - 1])) printf(" %s TWICE", found[index]);
    }
    printf(" (%lx)\n", sum);
    forget();
}

static int directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0) printf("%s: %s\n", path, strerror(errno)), exit(1);
    return fd;
}

static void ways_of(const char *path)
{
    for (int way = 0; way < WAYS; way++) {
        int fd = directory(path);
        printf("%s by %s: %d\n", path, way_names[way], all(way, fd, 32768));
        say("names");
        printf("at the end: %d\n", all(way, fd, 32768));
        say("nothing more");
        lseek(fd, 0, SEEK_SET);
        all(way, fd, 600);
        say("rewound, in small portions");
        for (int round = 0; round < 2; round++) {
            lseek(fd, 0, SEEK_SET);
            printf("too small: %d, ", all(way, fd, 16));
            printf("nothing: %d\n", all(way, fd, 0));
        }
        forget();
        close(fd);
    }
}

/* What one descriptor has read, another that shares its offset does not read again. */
static void shared(const char *path)
{
    int fd = directory(path), copy = dup(fd);
    for (ssize_t length = 1; length > 0;) length = portion(FUNCTION, count % 2 ? fd : copy, 300, NULL);
    say("in turn with a copy");
    lseek(fd, 0, SEEK_SET);
    portion(CALL, fd, 300, NULL);
    int pipes[2], had = count;
    if (pipe(pipes)) exit(1);
    if (fork() == 0) {
        portion(CALL, fd, 300, NULL);
        if (write(pipes[1], found[had], (count - had) * sizeof found[0]) < 0) _exit(1);
        _exit(0);
    }
    wait(NULL);
    close(pipes[1]);
    for (ssize_t got; (got = read(pipes[0], found[count], sizeof found[0] * 100)) > 0;) count += got / sizeof found[0];
    close(pipes[0]);
    all(CALL, fd, 300);
    say("in turn with a child");
    close(fd);
    fd = directory(path);
    all(FUNCTION, fd, 32768);
    say("a new descriptor of the same number");
    close(fd), close(copy);
}

/* The offset of a record leads to what comes behind it. */
static void sought(const char *path)
{
    int fd = directory(path);
    long offset = 0;
    portion(FUNCTION, fd, 200, &offset);
    int first = count;
    all(FUNCTION, fd, 32768);
    int total = count;
    lseek(fd, offset, SEEK_SET);
    forget();
    all(FUNCTION, fd, 32768);
    printf("behind the first portion: %d of the rest\n", count == total - first);
    forget();
    close(fd);
}

/* Each name is removed when it is seen, and one is made. */
static void removed(const char *path, int names)
{
    char name[600];
    mkdir(path, 0755);
    for (int index = 0; index < names; index++) {
        snprintf(name, sizeof name, "%s/a-name-that-takes-some-room-%d.dat", path, index);
        close(open(name, O_WRONLY | O_CREAT, 0644));
    }
    int fd = directory(path), had = 0;
    while (portion(FUNCTION, fd, 1000, NULL) > 0) {
        for (; had < count; had++) {
            if (found[had][0] == 'a' && unlinkat(fd, found[had], 0)) printf("cannot remove %s\n", found[had]);
        }
    }
    say("removed while listed");
    lseek(fd, 0, SEEK_SET);
    all(FUNCTION, fd, 32768);
    say("what is left");
    printf("rmdir: %d\n", rmdir(path));
    printf("a removed directory: %d\n", (lseek(fd, 0, SEEK_SET), all(FUNCTION, fd, 32768)));
    close(fd);
}

/* Names that the library gives the same number are listed together, or not at all where there is no room for both. */
static void twins(void)
{
    const char *const names[] = {"ckpt/sub/twin-11502", "ckpt/sub/twin-125341", "ckpt/sub/twin-11503", "ckpt/sub/twin-125342"};
    for (unsigned name = 0; name < 4; name++) close(open(names[name], O_WRONLY | O_CREAT, 0644));
    for (size_t size = 64; size < 400; size += 8) {
        int fd = directory("ckpt/sub");
        printf("portions of %zu: %d\n", size, all(OLD_CALL, fd, size));
        say("with twins");
        close(fd);
    }
    for (unsigned name = 0; name < 4; name++) unlink(names[name]);
}

static void refused(void)
{
    int fd = open("ckpt", O_PATH | O_DIRECTORY);
    printf("O_PATH: %d\n", all(FUNCTION, fd, 32768));
    close(fd);
    printf("closed: %d\n", all(CALL, fd, 32768));
    fd = open("ckpt/fresh", O_RDONLY);
    printf("file: %d\n", all(FUNCTION, fd, 32768));
    close(fd);
    printf("no descriptor: %d\n", all(BASED, -1, 32768));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    ways_of("ckpt");
    ways_of("ckpt/sub");
    ways_of("ckpt/empty");
    ways_of("elsewhere");
    shared("ckpt");
    sought("ckpt");
    removed("ckpt/many", 2000);
    twins();
    refused();
    return 0;
}
