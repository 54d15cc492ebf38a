/* Calls the names that programs are bound to without having written them: for large files, for checked sizes, for versions before
 * 2.33, and rare ones. Each is looked up as the loader would; what a C library lacks is passed over. Temporary names are random: only
 * their form is said. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <ftw.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { VERSION = 1 };
static int directory;

/* The function of a name, as one of the type of the expression `like`. */
#define CALL(name, like) ((__typeof__(&like))dlsym(RTLD_DEFAULT, name))
#define SAY(name, path, expression) do { errno = 77; long said = (long)(expression); say(name, path, said); } while (0)

static void say(const char *name, const char *path, long result)
{
    int number = errno;
    printf("%s %s: %ld %d\n", name, path, result, result < 0 ? number : 0);
}

/* Says what a descriptor shows, and closes it. */
static long shown(int fd)
{
    char text[32] = "";
    if (fd < 0)
        return fd;
    struct stat seen;
    fstat(fd, &seen);
    long got = pread(fd, text, sizeof text - 1, 0);
    printf("  %ld '%s' mode %o links %ld\n", got, got > 0 ? text : "", seen.st_mode, (long)seen.st_nlink);
    return CALL("__close", close)(fd);
}

static long streamed(FILE *stream)
{
    char text[32] = "";
    if (!stream)
        return -1;
    printf("  '%s'\n", fgets(text, sizeof text, stream) ? text : "");
    return CALL("_IO_fclose", fclose)(stream);
}

static int opens(const char *name, const char *path, int flags)
{
    if (strstr(name, "openat"))
        return strstr(name, "_2") ? CALL(name, openat)(directory, path, flags) : CALL(name, openat)(directory, path, flags, 0640);
    return strstr(name, "_2") ? CALL(name, open)(path, flags) : CALL(name, open)(path, flags, 0640);
}

static long stats(const char *name, const char *path)
{
    static int (*of_path)(int, const char *, struct stat *);
    static int (*at)(int, int, const char *, struct stat *, int);
    struct stat seen;
    long result;
    if (strstr(name, "statat")) {
        at = (__typeof__(at))dlsym(RTLD_DEFAULT, name);
        result = name[0] == '_' ? at(VERSION, directory, path, &seen, AT_SYMLINK_NOFOLLOW)
                                : CALL(name, fstatat)(directory, path, &seen, AT_SYMLINK_NOFOLLOW);
    } else {
        of_path = (__typeof__(of_path))dlsym(RTLD_DEFAULT, name);
        result = name[0] == '_' ? of_path(VERSION, path, &seen) : CALL(name, stat)(path, &seen);
    }
    if (result == 0)
        printf("  mode %o size %ld\n", seen.st_mode, S_ISDIR(seen.st_mode) ? 0 : (long)seen.st_size);
    return result;
}

static long file_system(const char *name, const char *path)
{
    union { struct statfs one; struct statvfs other; } of;
    return CALL(name, statfs)(path, &of.one);
}

static long links(const char *name, const char *path)
{
    char text[PATH_MAX] = "";
    long length;
    if (strstr(name, "at_"))
        length = ((ssize_t (*)(int, const char *, char *, size_t, size_t))dlsym(RTLD_DEFAULT, name))(directory, path, text, 64, sizeof text);
    else
        length = ((ssize_t (*)(const char *, char *, size_t, size_t))dlsym(RTLD_DEFAULT, name))(path, text, 64, sizeof text);
    printf("  '%s'\n", text);
    return length;
}

static long real(const char *name, const char *path)
{
    char room[PATH_MAX];
    char *text = strstr(name, "chk") ? ((char *(*)(const char *, char *, size_t))dlsym(RTLD_DEFAULT, name))(path, room, sizeof room)
                                     : CALL(name, canonicalize_file_name)(path);
    printf("  '%s'\n", text ? text : "");
    if (text && text != room)
        free(text);
    return text ? 0 : -1;
}

static long times(const char *name, const char *path)
{
    struct timeval both[2] = {{1000000000, 1000}, {1100000000, 2000}};
    struct stat seen;
    int follows = strcmp(name, "futimesat") == 0;
    long result = follows ? CALL(name, futimesat)(directory, path, both) : CALL(name, lutimes)(path, both);
    if (result == 0 && fstatat(directory, path, &seen, follows ? 0 : AT_SYMLINK_NOFOLLOW) == 0)
        printf("  at %ld.%ld\n", (long)seen.st_mtim.tv_sec, seen.st_mtim.tv_nsec);
    return result;
}

static long attributes(const char *path)
{
    char names[256];
    SAY("lsetxattr", path, CALL("lsetxattr", lsetxattr)(path, "user.one", "1", 1, 0));
    SAY("setxattr", path, CALL("setxattr", setxattr)(path, "user.two", "22", 2, 0));
    SAY("llistxattr", path, CALL("llistxattr", llistxattr)(path, names, sizeof names));
    SAY("lremovexattr", path, CALL("lremovexattr", lremovexattr)(path, "user.one"));
    SAY("removexattr", path, CALL("removexattr", removexattr)(path, "user.two"));
    return CALL("listxattr", listxattr)(path, names, sizeof names);
}

static int by_name(const void *one, const void *other)
{
    return strcmp(*(char *const *)one, *(char *const *)other);
}

/* Names in order, whatever order they came in; what Sheaf alone has there begins with a dot. */
static long listed(const char *name, const char *path)
{
    struct dirent **entries = NULL, *entry, room[8];
    char *names[128];
    long count = 0;
    if (strncmp(name, "scandir", 7) == 0) {
        count = strstr(name, "at") ? CALL(name, scandirat)(directory, path, &entries, NULL, alphasort)
                                   : CALL(name, scandir)(path, &entries, NULL, alphasort);
        for (long i = 0; i < count; i++)
            names[i] = entries[i]->d_name;
    } else {
        DIR *stream = opendir(path);
        if (!stream)
            return -1;
        if (strstr(name, "_r")) {
            int (*next)(DIR *, struct dirent *, struct dirent **) = (__typeof__(next))dlsym(RTLD_DEFAULT, name);
            while (next(stream, room, &entry) == 0 && entry)
                names[count++] = strdup(entry->d_name);
        } else
            while ((entry = CALL(name, readdir)(stream)))
                names[count++] = strdup(entry->d_name);
        closedir(stream);
    }
    if (count > 0)
        qsort(names, (size_t)count, sizeof *names, by_name);
    for (long i = 0; i < count; i++)
        if (names[i][0] != '.')
            printf("  %s\n", names[i]);
    return count < 0 ? count : 0;
}

static int visited;
static int visit(const char *path, const struct stat *seen, int kind)
{
    (void)path, (void)seen, (void)kind;
    visited += strstr(path, ".sheaf") == NULL;
    return 0;
}

static int in_order(const FTSENT **one, const FTSENT **other)
{
    return strcmp((*one)->fts_name, (*other)->fts_name);
}

static long walked(void)
{
    char *roots[] = {"ckpt/sub", NULL};
    FTSENT *entry;
    FTS *walk = CALL("fts64_open", fts_open)(roots, FTS_PHYSICAL | FTS_NOCHDIR, in_order);
    if (!walk)
        return -1;
    while ((entry = CALL("fts64_read", fts_read)(walk))) {
        printf("  %s %d\n", entry->fts_path, entry->fts_info);
        if (entry->fts_info == FTS_D && entry->fts_level == 0)
            printf("  has children %d\n", CALL("fts64_children", fts_children)(walk, 0) != NULL);
        if (entry->fts_info == FTS_D && entry->fts_level == 1)
            printf("  set %d\n", CALL("fts64_set", fts_set)(walk, entry, FTS_SKIP));
    }
    return CALL("fts64_close", fts_close)(walk);
}

/* A temporary name of its own: whether the form is kept, the file there, and taken by no other. */
static void temporary(const char *name, int has_suffix, int has_flags)
{
    char path[] = "ckpt/temporaryXXXXXX.end";
    struct stat seen;
    int fd = -1;
    if (!has_suffix)
        path[strlen(path) - 4] = 0;
    if (has_suffix && has_flags)
        fd = CALL(name, mkostemps)(path, 4, O_APPEND);
    else if (has_suffix)
        fd = CALL(name, mkstemps)(path, 4);
    else
        fd = has_flags ? CALL(name, mkostemp)(path, O_APPEND) : CALL(name, mkstemp)(path);
    printf("%s: %d, there %d, form %d\n", name, fd >= 0, lstat(path, &seen) == 0 && S_ISREG(seen.st_mode), strstr(path, "XXXXXX") == NULL);
    printf("  flags %x mode %o\n", fcntl(fd, F_GETFL), seen.st_mode);
    SAY("write", name, CALL("__write", write)(fd, "temporary", 9));
    SAY("__close", name, CALL("__close", close)(fd));
    SAY("unlink", name, unlink(path));
}

static void data(void)
{
    struct iovec parts[] = {{"one ", 4}, {"two ", 4}};
    int fd = CALL("creat64", creat)("ckpt/data", 0640), from = open("ckpt/stub", O_RDONLY);
    SAY("pwritev64", "data", CALL("pwritev64", pwritev)(fd, parts, 2, 0));
    SAY("pwritev2", "data", CALL("pwritev2", pwritev2)(fd, parts, 2, 8, 0));
    SAY("pwritev64v2", "data", CALL("pwritev64v2", pwritev2)(fd, parts, 2, 16, 0));
    SAY("__pwrite64", "data", CALL("__pwrite64", pwrite)(fd, "three", 5, 24));
    SAY("pwrite64", "data", CALL("pwrite64", pwrite)(fd, "four", 4, 29));
    SAY("ftruncate64", "data", CALL("ftruncate64", ftruncate)(fd, 4000));
    SAY("fallocate64", "data", CALL("fallocate64", fallocate)(fd, 0, 0, 5000));
    SAY("posix_fallocate64", "data", CALL("posix_fallocate64", posix_fallocate)(fd, 0, 6000));
    lseek(fd, 0, SEEK_END);
    ssize_t (*send)(int, int, off_t *, size_t) = (__typeof__(send))dlsym(RTLD_DEFAULT, "sendfile64");
    SAY("sendfile64", "data", send(fd, from, NULL, 100));
    int second = CALL("__dup2", dup2)(fd, 50);
    SAY("write", "data", write(second, "behind", 6));
    close(second), close(from), close(fd);
    SAY("truncate64", "data", CALL("truncate64", truncate)("ckpt/data", 6002));
}

/* A child that starts in another directory, and opens its output there. */
static void spawned(void)
{
    char *arguments[] = {"cat", NULL}, *environment[] = {NULL};
    posix_spawn_file_actions_t actions;
    int status = 0, below = open("ckpt", O_RDONLY | O_DIRECTORY);
    pid_t child = 0;
    CALL("posix_spawn_file_actions_init", posix_spawn_file_actions_init)(&actions);
    SAY("addopen", "ckpt/spawned", CALL("posix_spawn_file_actions_addopen", posix_spawn_file_actions_addopen)(&actions, 1, "ckpt/spawned", O_WRONLY | O_CREAT, 0640));
    SAY("addopen", "ckpt/stub", CALL("posix_spawn_file_actions_addopen", posix_spawn_file_actions_addopen)(&actions, 0, "ckpt/stub", O_RDONLY, 0));
    SAY("addfchdir", "ckpt", CALL("posix_spawn_file_actions_addfchdir_np", posix_spawn_file_actions_addfchdir_np)(&actions, below));
    SAY("posix_spawn", "cat", CALL("posix_spawn", posix_spawn)(&child, "/bin/cat", &actions, NULL, arguments, environment));
    waitpid(child, &status, 0);
    printf("status %d\n", status);
    CALL("posix_spawn_file_actions_destroy", posix_spawn_file_actions_destroy)(&actions);
    close(below);
    SAY("spawned", "ckpt/spawned", shown(open("ckpt/spawned", O_RDONLY)));
}

int main(void)
{
    static const char *names[] = {"stub", "fresh", "unmanaged", "missing", "link", "ulink", "dangling", "linkdir/inner", "sub",
                                  "stub/below", "sub/../fresh"};
    static const char *opened[] = {"__open", "__open64", "open64", "__open64_2", "__open_2", "openat64", "__openat64_2", "__openat_2"};
    static const char *looked[] = {"__xstat", "__xstat64", "__lxstat", "__lxstat64", "__fxstatat", "__fxstatat64", "stat64", "lstat64", "fstatat64"};
    static const char *lists[] = {"scandir64", "scandirat", "scandirat64", "readdir64", "readdir64_r", "readdir_r"};
    char here[PATH_MAX], whole[2 * PATH_MAX];
    if (!getcwd(here, sizeof here))
        return 1;
    directory = open(".", O_RDONLY | O_DIRECTORY);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        for (int way = 0; way < 2; way++) {
            snprintf(whole, sizeof whole, "%s%sckpt/%s", way ? "" : here, way ? "" : "/", names[i]);
            for (unsigned j = 0; j < sizeof opened / sizeof *opened; j++)
                SAY(opened[j], whole, shown(opens(opened[j], whole, O_RDONLY)));
            for (unsigned j = 0; j < sizeof looked / sizeof *looked; j++)
                SAY(looked[j], whole, stats(looked[j], whole));
            SAY("fopen64", whole, streamed(CALL("fopen64", fopen)(whole, "r")));
            SAY("_IO_fopen", whole, streamed(CALL("_IO_fopen", fopen)(whole, "r")));
            SAY("freopen64", whole, streamed(CALL("freopen64", freopen)(whole, "r", fopen("/dev/null", "r"))));
            SAY("__readlink_chk", whole, links("__readlink_chk", whole));
            SAY("__readlinkat_chk", whole, links("__readlinkat_chk", whole));
            SAY("__realpath_chk", whole, real("__realpath_chk", whole));
            SAY("canonicalize_file_name", whole, real("canonicalize_file_name", whole));
            SAY("__statfs", whole, file_system("__statfs", whole));
            SAY("statfs64", whole, file_system("statfs64", whole));
            SAY("statvfs64", whole, file_system("statvfs64", whole));
            SAY("eaccess", whole, CALL("eaccess", eaccess)(whole, R_OK));
            SAY("euidaccess", whole, CALL("euidaccess", euidaccess)(whole, W_OK));
            SAY("lchmod", whole, CALL("lchmod", lchmod)(whole, 0640));
            SAY("lchown", whole, CALL("lchown", lchown)(whole, (uid_t)-1, getgid()));
            SAY("futimesat", whole, times("futimesat", whole));
            SAY("lutimes", whole, times("lutimes", whole));
            SAY("listxattr", whole, attributes(whole));
            for (unsigned j = 0; j < sizeof lists / sizeof *lists; j++)
                SAY(lists[j], whole, listed(lists[j], whole));
        }
    for (unsigned i = 0; i < 2; i++) {
        int (*make)(int, const char *, mode_t, dev_t *) = (__typeof__(make))dlsym(RTLD_DEFAULT, "__xmknod");
        int (*make_at)(int, int, const char *, mode_t, dev_t *) = (__typeof__(make_at))dlsym(RTLD_DEFAULT, "__xmknodat");
        dev_t device = 0;
        SAY("__xmknod", "made", make(0, "ckpt/made", S_IFREG | 0640, &device));
        SAY("__xmknodat", "made-at", make_at(0, directory, "ckpt/made-at", S_IFREG | 0640, &device));
    }
    temporary("mkstemp64", 0, 0), temporary("mkostemp", 0, 1), temporary("mkostemp64", 0, 1);
    temporary("mkstemps", 1, 0), temporary("mkstemps64", 1, 0), temporary("mkostemps", 1, 1), temporary("mkostemps64", 1, 1);
    char made[] = "ckpt/directoryXXXXXX", unused[] = "ckpt/unusedXXXXXX";
    printf("mkdtemp %d\n", CALL("mkdtemp", mkdtemp)(made) != NULL);
    SAY("rmdir", "mkdtemp", rmdir(made));
    printf("mktemp %d\n", CALL("mktemp", mkdtemp)(unused) != NULL && unused[0] && access(unused, F_OK) != 0);
    data();
    spawned();
    SAY("fts64", "sub", walked());
    SAY("ftw64", "ckpt", CALL("ftw64", ftw)("ckpt", visit, 8));
    printf("visited %d\n", visited);
    return 0;
}
