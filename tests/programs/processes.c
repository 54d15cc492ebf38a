/* Every way to make a process, and what it does to descriptors and environment. Run in a directory that holds ckpt;
 * the same row must print, leave and end the same with and without a preloaded library. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define SIZE 70000

extern char **environ;

static int reap(pid_t child)
{
    int status;
    MUST(child);
    MUST(waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void report(pid_t child)
{
    printf("child ended with %d\n", reap(child));
}

static volatile int stop;

static void *keep_opening(void *name)
{
    while (!stop)
        put(name, 1, 3000);
    return NULL;
}

/* A descriptor that parent and child share, and children of a process whose other thread is inside open. */
static int row_fork(void)
{
    int shared = begin("ckpt/shared");
    pour(shared, 1, 1024);
    pid_t child = fork();
    if (child == 0) {
        pour(shared, 2, 1024);
        put("ckpt/child", 3, SIZE);
        _exit(7);
    }
    report(child);
    pour(shared, 3, 1024);
    MUST(close(shared));
    check("ckpt/shared", 1, 3072);
    check("ckpt/child", 3, SIZE);
    pthread_t thread;
    pthread_create(&thread, NULL, keep_opening, "ckpt/thread");
    for (int i = 0; i < 40; i++) {
        pid_t of_threads = fork();
        if (of_threads == 0) {
            char name[40];
            snprintf(name, sizeof name, "ckpt/child.%d", i);
            put(name, (unsigned)i, 5000);
            _exit(i);
        }
        report(of_threads);
    }
    stop = 1;
    pthread_join(thread, NULL);
    return 0;
}

/* The child shares the parent's memory, not its descriptor table. */
static int row_vfork(void)
{
    int kept = begin("ckpt/kept");
    pid_t child = vfork();
    if (child == 0) {
        int fd = open("ckpt/child", O_CREAT | O_TRUNC | O_WRONLY, 0600);
        close(kept);
        if (fd < 0 || write(fd, "from the child\n", 15) != 15)
            _exit(1);
        close(fd);
        _exit(9);
    }
    report(child);
    pour(kept, 4, SIZE);
    MUST(close(kept));
    check("ckpt/kept", 4, SIZE);
    pid_t copier = vfork();
    if (copier == 0) {
        execlp("cp", "cp", "ckpt/kept", "ckpt/copy", (char *)NULL);
        _exit(127);
    }
    report(copier);
    check("ckpt/copy", 4, SIZE);
    return 0;
}

/* _Fork runs no atfork handler. It is looked up: older C libraries lack it. */
static int row_raw_fork(void)
{
    put("ckpt/before", 1, SIZE);
    pid_t child = _Fork();
    if (child == 0) {
        put("ckpt/child", 2, SIZE);
        _exit(3);
    }
    report(child);
    child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        put("ckpt/raw child", 3, SIZE);
        _exit(4);
    }
    report(child);
    check("ckpt/child", 2, SIZE);
    check("ckpt/raw child", 3, SIZE);
    return 0;
}

static int cloned(void *name)
{
    put(name, 5, SIZE);
    return 11;
}

static int row_clone(void)
{
    size_t size = 1 << 16;
    char *stack = malloc(size);
    report(clone(cloned, stack + size, SIGCHLD, "ckpt/own memory"));
    report(clone(cloned, stack + size, CLONE_VM | CLONE_VFORK | SIGCHLD, "ckpt/shared memory"));
    report(clone(cloned, stack + size, CLONE_FILES | SIGCHLD, "ckpt/shared table"));
    report(clone(cloned, stack + size, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS | SIGCHLD, "ckpt/shared all"));
    check("ckpt/own memory", 5, SIZE);
    check("ckpt/shared memory", 5, SIZE);
    check("ckpt/shared table", 5, SIZE);
    check("ckpt/shared all", 5, SIZE);
    return 0;
}

/* Descriptors of checkpoint files handed to a spawned program as its standard input and output. */
static int row_spawn(void)
{
    put("ckpt/input", 6, SIZE);
    int input = open("ckpt/input", O_RDONLY), output = begin("ckpt/output");
    MUST(input);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input, 0);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_addclose(&actions, input);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawn_file_actions_addchdir_np(&actions, "ckpt");
    char *cat[] = {"cat", NULL}, *copy[] = {"cp", "output", "copy", NULL};
    pid_t child;
    if (posix_spawnp(&child, "cat", &actions, NULL, cat, environ) != 0)
        die("posix_spawnp");
    MUST(close(output));
    report(child);
    if (posix_spawnp(&child, "cp", &actions, NULL, copy, environ) != 0)
        die("posix_spawnp");
    report(child);
    posix_spawn_file_actions_destroy(&actions);
    check("ckpt/output", 6, SIZE);
    check("ckpt/copy", 6, SIZE);
    return 0;
}

/* A child whose environment was emptied has no Sheaf: what it writes is where it would be natively. */
static int row_clean_exec(void)
{
    put("ckpt/before", 1, SIZE);
    int inherited = begin("ckpt/inherited");
    pid_t child = fork();
    if (child == 0) {
        char *const none[] = {NULL};
        MUST(dup2(inherited, 1));
        execle("/bin/sh", "sh", "-c", "echo through a descriptor; echo by name >ckpt/escaped", (char *)NULL, none);
        _exit(127);
    }
    MUST(close(inherited));
    report(child);
    char text[40] = "";
    int fd = open("ckpt/escaped", O_RDONLY);
    MUST(fd);
    MUST(read(fd, text, sizeof text - 1));
    printf("escaped: %s", text);
    return 0;
}

/* The parent is gone, the session left, and the working directory stays. */
static int row_daemon(void)
{
    put("ckpt/before", 1, SIZE);
    fflush(stdout);
    MUST(daemon(1, 1));
    put("ckpt/of the daemon", 2, SIZE);
    check("ckpt/before", 1, SIZE);
    check("ckpt/of the daemon", 2, SIZE);
    return 0;
}

static void close_all_in_turn(void)
{
    for (int fd = 3; fd < 4096; fd++)
        close(fd);
}

/* Everything is closed in three ways; each time the next file must get the number that it gets natively. */
static int row_close_everything(void)
{
    printf("first: %d\n", put("ckpt/first", 1, SIZE));
    closefrom(3);
    printf("after closefrom: %d\n", put("ckpt/second", 2, SIZE));
    MUST(close_range(3, ~0U, 0));
    printf("after close_range: %d\n", put("ckpt/third", 3, SIZE));
    close_all_in_turn();
    printf("after closing in turn: %d\n", put("ckpt/fourth", 4, SIZE));
    check("ckpt/first", 1, SIZE);
    check("ckpt/fourth", 4, SIZE);
    return 0;
}

/* With the standard streams closed, the program's own files get 0, 1 and 2, and nobody else writes into them. */
static int row_standard_streams_closed(void)
{
    MUST(fcntl(1, F_DUPFD, 100));
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    int files[3];
    files[0] = begin("ckpt/zero");
    files[1] = begin("ckpt/one");
    files[2] = begin("ckpt/two");
    for (int i = 0; i < 3; i++)
        pour(files[i], (unsigned)i, SIZE);
    struct stat about;
    MUST(stat("ckpt/zero", &about));
    errno = 0;
    int missing = open("ckpt/missing", O_RDONLY), reason = errno;
    for (int fd = 0; fd < 3; fd++)
        MUST(close(fd));
    MUST(dup2(100, 1));
    printf("%d %d %d, missing: %d %d\n", files[0], files[1], files[2], missing, reason);
    check("ckpt/zero", 0, SIZE);
    check("ckpt/one", 1, SIZE);
    check("ckpt/two", 2, SIZE);
    return 0;
}

/* An open file travels through a socket; its opener has ended before anything is written. */
static int row_descriptor_in_flight(void)
{
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    char byte = 'x', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    pid_t child = fork();
    if (child == 0) {
        int fd = begin("ckpt/travelled");
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        MUST(sendmsg(pair[0], &message, 0));
        _exit(0);
    }
    report(child);
    MUST(recvmsg(pair[1], &message, 0));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    pour(fd, 8, SIZE);
    MUST(close(fd));
    check("ckpt/travelled", 8, SIZE);
    return 0;
}

/* What a program started through a shell writes is captured like its own. */
static int row_shells(void)
{
    put("ckpt/before", 1, SIZE);
    printf("system: %d\n", system("cp ckpt/before ckpt/by-system && test -s ckpt/by-system"));
    FILE *pipe = popen("cat >ckpt/by-popen", "w");
    fputs("through a pipe\n", pipe);
    printf("pclose: %d\n", pclose(pipe));
    check("ckpt/by-system", 1, SIZE);
    return 0;
}

static const struct row rows[] = {
    {"fork", row_fork},
    {"vfork", row_vfork},
    {"raw_fork", row_raw_fork},
    {"clone", row_clone},
    {"spawn", row_spawn},
    {"clean_exec", row_clean_exec},
    {"daemon", row_daemon},
    {"close_everything", row_close_everything},
    {"standard_streams_closed", row_standard_streams_closed},
    {"descriptor_in_flight", row_descriptor_in_flight},
    {"shells", row_shells},
};

int main(int count, char **arguments)
{
    (void)count;
    return choose(rows, ROWS(rows), arguments);
}
