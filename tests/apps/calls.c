/* Makes the rarer calls on every name below `ckpt`, spelled in every way, and prints what they answer: `calls`.
 *
 * Run natively and under the preloaded library it must print the same, but for the path of the directory. Each call
 * leaves the directory as it found it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

extern char **environ;

static char base[PATH_MAX];

/* One answer: the call, the name, what came back. Success leaves errno alone. */
static void say(const char *call, const char *path, long result)
{
    int number = errno;
    printf("%s %s: %ld", call, path, result);
    if (result == -1)
        printf(" errno %d", number);
    else if (number != 77)
        printf(" errno changed to %d", number);
    printf("\n");
    fflush(stdout);
}

#define SAY(call, path, expression) \
    do { \
        errno = 77; \
        long result_ = (expression); \
        say(call, path, result_); \
    } while (0)

static long key_agrees(const char *path)
{
    struct stat seen;
    key_t key = ftok(path, 'k');
    if (key == -1)
        return -1;
    if (stat(path, &seen) != 0)
        return -2;
    return key == (key_t)((seen.st_ino & 0xffff) | (seen.st_dev & 0xff) << 16 | (unsigned)'k' << 24);
}

static long go_and_come_back(const char *path, int raw)
{
    char there[PATH_MAX];
    if ((raw ? syscall(SYS_chdir, path) : chdir(path)) != 0)
        return -1;
    if (!getcwd(there, sizeof there))
        return -2;
    printf("(now in %s) ", there);
    if (chdir(base) != 0)
        return -3;
    return 0;
}

static long file_system(const char *path)
{
    struct statfs of_path, of_base;
    struct statvfs other;
    if (statfs(path, &of_path) != 0)
        return -1;
    if (statfs(base, &of_base) != 0 || statvfs(path, &other) != 0 || syscall(SYS_statfs, path, &of_base) != 0)
        return -2;
    return of_path.f_type == of_base.f_type && of_path.f_bsize == of_base.f_bsize &&
           memcmp(&of_path.f_fsid, &of_base.f_fsid, sizeof of_path.f_fsid) == 0 && other.f_frsize == (unsigned long)of_path.f_frsize;
}

/* Makes something and, if that went well, says what it is and removes it again. */
static void make(const char *call, const char *path, int directory, const char *name, long result)
{
    struct stat seen;
    say(call, path, result);
    if (result == 0) {
        if (fstatat(directory, name, &seen, AT_SYMLINK_NOFOLLOW) == 0)
            printf("  mode %o size %ld links %ld\n", seen.st_mode, (long)seen.st_size, (long)seen.st_nlink);
        if (unlinkat(directory, name, 0) != 0)
            printf("  and cannot be removed: %d\n", errno);
    }
}

static void make_all(const char *path, int directory, const char *name)
{
    errno = 77, make("mkfifo", path, directory, name, mkfifo(path, 0640));
    errno = 77, make("mkfifoat", path, directory, name, mkfifoat(directory, name, 0640));
    errno = 77, make("mknod", path, directory, name, mknod(path, S_IFREG | 0640, 0));
    errno = 77, make("mknodat", path, directory, name, mknodat(directory, name, 0604, 0));
    errno = 77, make("mknod fifo", path, directory, name, mknod(path, S_IFIFO | 0640, 0));
    errno = 77, make("mknod socket", path, directory, name, mknodat(directory, name, S_IFSOCK | 0640, 0));
    errno = 77, make("mknod directory", path, directory, name, mknod(path, S_IFDIR | 0640, 0));
    errno = 77, make("raw mknodat", path, directory, name, syscall(SYS_mknodat, directory, name, S_IFREG | 0640, 0));
    errno = 77, make("raw mknodat fifo", path, directory, name, syscall(SYS_mknodat, directory, name, S_IFIFO | 0640, 0));
}

static void attributes(const char *path)
{
    char value[64];
    SAY("raw setxattr", path, syscall(SYS_setxattr, path, "user.sheaf", "value", 5, 0));
    SAY("raw getxattr", path, syscall(SYS_getxattr, path, "user.sheaf", value, sizeof value));
    SAY("getxattr", path, getxattr(path, "user.sheaf", value, sizeof value));
    SAY("raw lgetxattr", path, syscall(SYS_lgetxattr, path, "user.other", value, sizeof value));
    SAY("raw removexattr", path, syscall(SYS_removexattr, path, "user.sheaf"));
    SAY("raw lremovexattr", path, syscall(SYS_lremovexattr, path, "user.sheaf"));
}

static long watch(const char *path, unsigned mask)
{
    int watcher = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    int watch = inotify_add_watch(watcher, path, mask);
    int number = errno;
    close(watcher);
    errno = number;
    return watch;
}

/* What a child prints, indented, and its status. */
static void child(const char *call, const char *path, void (*run)(const char *))
{
    int status;
    fflush(stdout);
    pid_t process = fork();
    if (process == 0) {
        dup2(1, 2);
        errno = 77;
        run(path);
        printf("errno %d\n", errno);
        fflush(stdout);
        _exit(99);
    }
    waitpid(process, &status, 0);
    printf("%s %s: status %x\n", call, path, status);
}

static char *arguments[] = {"zero", "one", "two words", NULL};
static char *few[] = {"A=1", NULL};

static void by_execve(const char *path) { execve(path, arguments, environ); }
static void by_execv(const char *path) { execv(path, arguments); }
static void by_execvp(const char *path) { execvp(path, arguments); }
static void by_execvpe(const char *path) { execvpe(path, arguments, environ); }
static void by_execl(const char *path) { execl(path, "zero", "1", "2", "3", "4", "5", "6", "7", "8", "9", NULL); }
static void by_execlp(const char *path) { execlp(path, "zero", "one", NULL); }
static void by_execle(const char *path) { execle(path, "zero", "1", "2", "3", "4", "5", "6", "7", NULL, environ); }
static void by_execve_bare(const char *path) { execve(path, arguments, few); }
static void by_execveat(const char *path) { execveat(AT_FDCWD, path, arguments, environ, 0); }
static void by_execveat_nofollow(const char *path) { execveat(AT_FDCWD, path, arguments, environ, AT_SYMLINK_NOFOLLOW); }
static void by_number(const char *path) { syscall(SYS_execve, path, arguments, environ); }
static void by_fexecve(const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd >= 0)
        fexecve(fd, arguments, environ);
}
static void by_vfork(const char *path)
{
    int status;
    pid_t process = vfork();
    if (process == 0) {
        execve(path, arguments, environ);
        _exit(errno);
    }
    waitpid(process, &status, 0);
    _exit(WEXITSTATUS(status));
}
static void by_many(const char *path)
{
    static char *many[201];
    for (int i = 0; i < 200; i++)
        many[i] = "x";
    execv(path, many);
}

static void spawn(const char *call, const char *path, posix_spawn_file_actions_t *actions, int searched)
{
    pid_t process;
    int status = 0;
    fflush(stdout);
    int number = (searched ? posix_spawnp : posix_spawn)(&process, path, actions, NULL, arguments, environ);
    if (number == 0)
        waitpid(process, &status, 0);
    printf("%s %s: %d status %x\n", call, path, number, status);
}

static void start_all(const char *path)
{
    child("execve", path, by_execve);
    child("execv", path, by_execv);
    child("execvp", path, by_execvp);
    child("execvpe", path, by_execvpe);
    child("execl", path, by_execl);
    child("execlp", path, by_execlp);
    child("execle", path, by_execle);
    child("execveat", path, by_execveat);
    child("execveat nofollow", path, by_execveat_nofollow);
    child("raw execve", path, by_number);
    child("vfork", path, by_vfork);
    child("200 arguments", path, by_many);
    spawn("posix_spawn", path, NULL, 0);
    spawn("posix_spawnp", path, NULL, 1);
}

static void print(const char *path)
{
    char bytes[4096];
    struct stat seen;
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
    printf("%s holds %ld bytes", path, (long)got);
    if (got > 0)
        printf(": %.*s", (int)(got < 60 ? got : 60), bytes);
    if (fd >= 0 && fstat(fd, &seen) == 0)
        printf(" mode %o", seen.st_mode);
    printf("\n");
    if (fd >= 0)
        close(fd);
}

/* /bin/cat with its input and output opened by the child. */
static void redirected(const char *from, const char *to, int flags, const char *directory)
{
    posix_spawn_file_actions_t actions;
    char *cat[] = {"cat", NULL};
    pid_t process;
    int status = 0;
    posix_spawn_file_actions_init(&actions);
    if (directory)
        posix_spawn_file_actions_addchdir_np(&actions, directory);
    int in = posix_spawn_file_actions_addopen(&actions, 0, from, O_RDONLY, 0);
    int out = posix_spawn_file_actions_addopen(&actions, 1, to, flags, 0640);
    int number = posix_spawn(&process, "/bin/cat", &actions, NULL, cat, environ);
    if (number == 0)
        waitpid(process, &status, 0);
    posix_spawn_file_actions_destroy(&actions);
    printf("from %s to %s flags %o: %d %d %d status %x\n", from, to, flags, in, out, number, status);
}

static void load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    int (*answer)(void) = library ? (int (*)(void))dlsym(library, "answer") : NULL;
    printf("dlopen %s: %d\n", path, answer ? answer() : -1);
    if (library)
        dlclose(library);
}

int main(void)
{
    static const char *names[] = {"stub", "fresh", "unmanaged", "missing", "link", "ulink", "dangling", "sub", "linkdir",
                                  "linkdir/inner", "sub/inner", "stub/below", "missing/below", "linkdir/missing", "sub/../fresh"};
    static const char *spellings[] = {"%2$s/ckpt/%1$s", "ckpt/%1$s", "ckpt//.//%1$s/", "elsewhere/door/%1$s", "ckpt/linkdir/../%1$s"};
    static const char *programs[] = {"program", "script", "chained", "bare-script", "broken-script", "not-executable", "program-link",
                                     "linkdir/program", "missing", "sub"};
    char path[2 * PATH_MAX];
    if (!getcwd(base, sizeof base))
        return 1;
    int directory = open("ckpt", O_RDONLY | O_DIRECTORY);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        for (unsigned j = 0; j < sizeof spellings / sizeof *spellings; j++) {
            snprintf(path, sizeof path, spellings[j], names[i], base);
            SAY("chdir", path, go_and_come_back(path, 0));
            SAY("raw chdir", path, go_and_come_back(path, 1));
            SAY("statfs", path, file_system(path));
            SAY("pathconf", path, pathconf(path, _PC_NAME_MAX));
            SAY("ftok", path, key_agrees(path));
            SAY("watch", path, watch(path, IN_CLOSE_WRITE));
            SAY("watch directory", path, watch(path, IN_CLOSE_WRITE | IN_ONLYDIR));
            SAY("watch link", path, watch(path, IN_CLOSE_WRITE | IN_DONT_FOLLOW));
            make_all(path, directory, names[i]);
            attributes(path);
        }
    }
    for (unsigned i = 0; i < sizeof programs / sizeof *programs; i++) {
        for (unsigned j = 0; j < 2; j++) {
            snprintf(path, sizeof path, spellings[j], programs[i], base);
            start_all(path);
        }
    }
    child("few variables", "ckpt/program", by_execve_bare);
    child("few variables", "ckpt/linkdir/program", by_execve_bare);
    child("few variables", "ckpt/quiet-script", by_execve_bare);
    child("fexecve", "ckpt/program", by_fexecve);
    redirected("ckpt/stub", "ckpt/made", O_WRONLY | O_CREAT | O_EXCL, NULL);
    print("ckpt/made");
    redirected("ckpt/fresh", "ckpt/made", O_WRONLY | O_CREAT | O_APPEND, NULL);
    print("ckpt/made");
    redirected("ckpt/link", "ckpt/made", O_WRONLY | O_CREAT | O_EXCL, NULL);
    redirected("ckpt/link", "ckpt/dangling", O_WRONLY | O_CREAT, NULL);
    print("ckpt/nothing");
    unlink("ckpt/nothing");
    redirected("ckpt/unmanaged", "ckpt/stub2", O_WRONLY | O_TRUNC, NULL);
    print("ckpt/stub2");
    redirected("/dev/null", "unmanaged", O_WRONLY | O_APPEND, "ckpt/linkdir/..");
    redirected("ckpt/missing", "ckpt/made", O_WRONLY, NULL);
    redirected("ckpt/stub", "/dev/null", O_WRONLY, NULL);
    load("./ckpt/libthing.so");
    load("ckpt/thing-link");
    load("ckpt/stub");
    load("libm.so.6");
    return 0;
}
