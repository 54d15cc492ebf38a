/* Makes files without a name, gives them names in every way, and opens names with openat2's restrictions: `unnamed`.
 *
 * Run natively and under the preloaded library it must print the same, but for the path of the directory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int number;
static char absolute[PATH_MAX];

static void said(const char *what, const char *path, long result)
{
    printf("%s %s: %ld errno %d\n", what, path, result, result < 0 ? errno : 0);
    fflush(stdout);
}

static void described(int fd, const char *name)
{
    struct stat one = {0}, other = {0};
    fstat(fd, &one);
    int found = name ? stat(name, &other) : -1;
    printf("  mode %o size %ld links %ld, by name %d %s\n", one.st_mode, (long)one.st_size, (long)one.st_nlink, found,
           found == 0 && one.st_ino == other.st_ino && one.st_dev == other.st_dev ? "same" : "other");
}

/* `by`: 0 by /proc/self/fd, 1 by the descriptor itself, 2 by /proc/self/fd below a directory descriptor. */
static int named(int fd, const char *name, int by)
{
    char own[64];
    int proc = open("/proc/self", O_PATH), result;
    snprintf(own, sizeof own, by == 2 ? "fd/%d" : "/proc/self/fd/%d", fd);
    result = by == 1 ? linkat(fd, "", AT_FDCWD, name, AT_EMPTY_PATH) : linkat(by == 2 ? proc : AT_FDCWD, own, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
    int seen = errno;
    close(proc);
    errno = seen;
    return result;
}

static void made_in(int directory, const char *path, int flags)
{
    for (int by = 0; by < 3; by++) {
        char name[PATH_MAX + 32], second[64];
        int fd = by == 1 ? syscall(SYS_openat, directory, path, O_TMPFILE | flags, 0640) : openat(directory, path, O_TMPFILE | flags, 0640);
        said("without a name in", path, fd < 0 ? fd : 0);
        if (fd < 0)
            continue;
        dprintf(fd, "content %d\n", ++number);
        described(fd, NULL);
        snprintf(name, sizeof name, "%s/unnamed-%d", number % 2 ? absolute : "elsewhere/door", number);
        snprintf(second, sizeof second, "ckpt/sub/second-%d", number);
        said("exists", "ckpt/fresh", named(fd, "ckpt/fresh", by));
        said("is a directory", "ckpt/sub", named(fd, "ckpt/sub", by));
        said("is not there", "ckpt/nowhere/name", named(fd, "ckpt/nowhere/name", by));
        said("ends in a slash", "ckpt/name/", named(fd, "ckpt/name/", by));
        said("named", number % 2 ? "absolute" : "by a link", named(fd, name, by));
        described(fd, name);
        dprintf(fd, "more\n");
        said("named again", second, named(fd, second, by));
        described(fd, second);
        close(fd);
    }
}

static void opened(int directory, const char *path, unsigned long flags, unsigned long resolve)
{
    struct open_how how = {.flags = flags, .mode = flags & O_CREAT ? 0600 : 0, .resolve = resolve};
    char text[64] = "";
    int fd = syscall(SYS_openat2, directory, path, &how, sizeof how);
    if (fd >= 0 && !(flags & (O_PATH | O_DIRECTORY)))
        (void)!read(fd, text, sizeof text - 1);
    printf("openat2 %s flags %lo resolve %lx: %s errno %d %s", path, flags, resolve, fd < 0 ? "no" : "yes", fd < 0 ? errno : 0, *text ? text : "\n");
    if (fd >= 0)
        close(fd);
}

/* What is not in the kernel's memory answers EAGAIN, at any time; what answers otherwise must answer as without that. */
static void cached(int directory, const char *path, unsigned long flags)
{
    struct open_how how = {.flags = flags, .resolve = RESOLVE_CACHED};
    int fd = syscall(SYS_openat2, directory, path, &how, sizeof how), seen = fd < 0 ? errno : 0, other_seen;
    how.resolve = 0;
    int other = syscall(SYS_openat2, directory, path, &how, sizeof how);
    other_seen = other < 0 ? errno : 0;
    struct stat one = {0}, two = {0};
    fstat(fd, &one), fstat(other, &two);
    int is_right = seen == EAGAIN || (seen == other_seen && one.st_ino == two.st_ino && one.st_dev == two.st_dev);
    printf("cached %s flags %lo: %s, else %d\n", path, flags, is_right ? "as it may" : "wrong", other_seen);
    close(fd), close(other);
}

/* Calls on the descriptor itself, by an empty path. */
static void empty_path(const char *path, int flags)
{
    struct stat seen = {0};
    struct statx more = {0};
    char target[64] = "";
    int fd = open(path, flags);
    said("open", path, fd < 0 ? fd : 0);
    said("fstatat", path, fstatat(fd, "", &seen, AT_EMPTY_PATH));
    said("statx", path, statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &more));
    printf("  mode %o %o size %ld %ld same %d\n", seen.st_mode, more.stx_mode, S_ISDIR(seen.st_mode) ? 0 : (long)seen.st_size,
           S_ISDIR(seen.st_mode) ? 0 : (long)more.stx_size, seen.st_ino == more.stx_ino);
    said("fchownat", path, fchownat(fd, "", -1, -1, AT_EMPTY_PATH));
    said("faccessat2", path, syscall(SYS_faccessat2, fd, "", R_OK, AT_EMPTY_PATH));
    said("readlinkat", path, readlinkat(fd, "", target, sizeof target - 1));
    printf("  %s\n", target);
    close(fd);
}

int main(void)
{
    int here = open("ckpt", O_RDONLY | O_DIRECTORY), file = open("ckpt/fresh", O_RDWR), gone = open("ckpt/gone", O_RDWR | O_CREAT, 0600);
    if (!realpath("ckpt", absolute))
        return 1;
    made_in(AT_FDCWD, "ckpt", O_RDWR);
    made_in(AT_FDCWD, absolute, O_WRONLY);
    made_in(AT_FDCWD, "ckpt/sub/", O_RDWR | O_CLOEXEC);
    made_in(AT_FDCWD, "elsewhere/door", O_RDWR);
    made_in(AT_FDCWD, "ckpt/linkdir/.", O_RDWR);
    made_in(here, ".", O_RDWR);
    made_in(here, "sub/deep", O_RDWR);
    made_in(AT_FDCWD, "ckpt", O_RDWR | O_EXCL);
    made_in(AT_FDCWD, "ckpt", O_RDONLY);
    made_in(AT_FDCWD, "ckpt/fresh", O_RDWR);
    made_in(AT_FDCWD, "ckpt/missing", O_RDWR);
    for (int by = 0; by < 3; by++) {
        char name[64];
        snprintf(name, sizeof name, "ckpt/fresh-%d", by);
        said("an open file", name, named(file, name, by));
        unlink("ckpt/gone");
        said("a removed file", "ckpt/back", named(gone, "ckpt/back", by));
    }
    described(file, "ckpt/fresh-1");
    const char *held[] = {"ckpt/fresh", "ckpt/stub2", "ckpt/unmanaged", "ckpt/sub", "ckpt/link", "ckpt/ulink", "ckpt/missing"};
    for (unsigned name = 0; name < sizeof held / sizeof *held; name++) {
        empty_path(held[name], O_RDONLY);
        empty_path(held[name], O_PATH | O_NOFOLLOW);
    }
    unsigned long resolves[] = {0, RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT, 0x4000};
    const char *paths[] = {"fresh", "stub", "unmanaged", "link", "ulink", "dangling", "sub/inner", "linkdir/inner", "./sub/../fresh", "../ckpt/fresh",
                           "../elsewhere/door/stub", "missing", "sub", "", "sub/deep/deeper/file"};
    for (unsigned path = 0; path < sizeof paths / sizeof *paths; path++)
        for (unsigned resolve = 0; resolve < sizeof resolves / sizeof *resolves; resolve++) {
            opened(here, paths[path], O_RDONLY, resolves[resolve]);
            opened(here, paths[path], O_PATH | O_NOFOLLOW, resolves[resolve]);
            opened(here, paths[path], O_RDONLY | O_CREAT | O_EXCL, resolves[resolve]);
        }
    for (unsigned path = 0; path < sizeof paths / sizeof *paths; path++) {
        cached(here, paths[path], O_RDONLY);
        cached(here, paths[path], O_PATH | O_NOFOLLOW);
    }
    struct open_how making = {.flags = O_RDWR | O_CREAT, .mode = 0600, .resolve = RESOLVE_CACHED};
    said("cached, made", "made-cached", syscall(SYS_openat2, here, "made-cached", &making, sizeof making));
    said("cached, was it made", "made-cached", access("ckpt/made-cached", F_OK));
    making.flags = O_RDWR | O_TRUNC, making.mode = 0;
    said("cached, truncated", "fresh", syscall(SYS_openat2, here, "fresh", &making, sizeof making));
    for (unsigned resolve = 0; resolve < 6; resolve++) {
        char name[64];
        snprintf(name, sizeof name, "made-%u", resolve);
        opened(here, name, O_RDWR | O_CREAT, resolves[resolve]);
        opened(here, absolute, O_RDONLY | O_DIRECTORY, resolves[resolve]);
    }
    return 0;
}
