/* Little stack, signals and cancellation in the middle of a call, and low or huge limits. Run in a directory that
 * holds ckpt; the same row must print, leave and end the same with and without a preloaded library. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#define SIZE 70000
#define SMALL_STACK 16384

static void *on_small_stack(void *unused)
{
    (void)unused;
    put("ckpt/of a thread", 1, SIZE);
    check("ckpt/of a thread", 1, SIZE);
    struct stat about;
    MUST(stat("ckpt/of a thread", &about));
    MUST(mkdir("ckpt/below", 0755));
    MUST(rename("ckpt/of a thread", "ckpt/below/moved"));
    MUST(link("ckpt/below/moved", "ckpt/below/linked"));
    MUST(symlink("below/moved", "ckpt/pointer"));
    check("ckpt/pointer", 1, SIZE);
    int entries = 0;
    DIR *directory = opendir("ckpt/below");
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        entries++;
    closedir(directory);
    MUST(unlink("ckpt/below/linked"));
    printf("%d entries, %ld bytes\n", entries, (long)about.st_size);
    char template[] = "ckpt/made-XXXXXX";
    int made = mkstemp(template);
    MUST(made);
    MUST(close(made));
    MUST(unlink(template));
    return NULL;
}

static int row_small_stack(void)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstacksize(&attributes, SMALL_STACK) != 0)
        die("pthread_attr_setstacksize");
    pthread_t thread;
    if (pthread_create(&thread, &attributes, on_small_stack, NULL) != 0)
        die("pthread_create");
    pthread_join(thread, NULL);
    return 0;
}

static char final_name[40];

/* Writes a checkpoint the way that careful programs do, on the alternate stack. */
static void on_term(int signal)
{
    (void)signal;
    put("ckpt/being-written", 7, SIZE);
    MUST(rename("ckpt/being-written", final_name));
    _exit(5);
}

static void use_small_signal_stack(int number, void (*handler)(int), int flags)
{
    static char stack[SMALL_STACK];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    MUST(sigaltstack(&alternate, NULL));
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | flags};
    MUST(sigaction(number, &action, NULL));
}

/* The child is told to end while it is inside one call after another on checkpoint files. */
static void end_one_by_signal(int round)
{
    int ready[2];
    char byte = 'x';
    MUST(pipe(ready));
    pid_t child = fork();
    if (child == 0) {
        snprintf(final_name, sizeof final_name, "ckpt/final.%d", round);
        use_small_signal_stack(SIGTERM, on_term, 0);
        for (int i = 0;; i++) {
            put("ckpt/work", 1, 1000);
            if (i == round)
                MUST(write(ready[1], &byte, 1));
            MUST(rename("ckpt/work", "ckpt/older work"));
        }
    }
    MUST(close(ready[1]));
    MUST(read(ready[0], &byte, 1));
    MUST(close(ready[0]));
    MUST(kill(child, SIGTERM));
    int status;
    MUST(waitpid(child, &status, 0));
    printf("round %d: %#x\n", round, status);
    unlink("ckpt/work");
    unlink("ckpt/older work");
}

static int row_checkpoint_on_term(void)
{
    for (int round = 0; round < 30; round++)
        end_one_by_signal(round);
    return 0;
}

#define TICKS 100
static volatile sig_atomic_t ticks;

static void on_tick(int signal)
{
    (void)signal;
    int kept = errno;
    char name[40];
    if (ticks < TICKS) {
        snprintf(name, sizeof name, "ckpt/tick.%d", (int)ticks);
        put(name, (unsigned)ticks, 3000);
        ticks++;
    }
    errno = kept;
}

/* Handlers run inside the calls of a program that goes on afterwards. */
static int row_checkpoints_on_a_timer(void)
{
    use_small_signal_stack(SIGALRM, on_tick, SA_RESTART);
    struct itimerval often = {{0, 700}, {0, 700}}, never = {{0, 0}, {0, 0}};
    MUST(setitimer(ITIMER_REAL, &often, NULL));
    unsigned rounds = 0;
    for (; ticks < TICKS; rounds++) {
        put("ckpt/new", rounds, 2500);
        MUST(rename("ckpt/new", "ckpt/current"));
        errno = 0;
        if (open("ckpt/missing", O_RDONLY) >= 0 || errno != ENOENT)
            die("open of a missing file");
    }
    MUST(setitimer(ITIMER_REAL, &never, NULL));
    put("ckpt/current", 0, 2500);
    check("ckpt/current", 0, 2500);
    return 0;
}

static pthread_barrier_t begun;

static void *open_until_cancelled(void *path)
{
    pthread_barrier_wait(&begun);
    for (;;) {
        int state, fd = open(path, O_CREAT | O_WRONLY, 0644);
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
        if (fd >= 0)
            close(fd);
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
        pthread_testcancel();
    }
    return NULL;
}

static void *wait_in_open(void *path)
{
    pthread_barrier_wait(&begun);
    int fd = open(path, O_RDONLY);
    printf("a FIFO without a writer was opened: %d\n", fd);
    return NULL;
}

static int cancel(void *(*run)(void *), const char *path)
{
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, run, (void *)path);
    pthread_barrier_wait(&begun);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    return result == PTHREAD_CANCELED;
}

/* More threads are cancelled than the library can have of anything. */
static int row_cancelled_in_open(void)
{
    pthread_barrier_init(&begun, NULL, 2);
    put("ckpt/before", 1, SIZE);
    MUST(mkfifo("ckpt/fifo", 0600));
    int cancelled = 0;
    for (int i = 0; i < 150; i++) {
        cancelled += cancel(open_until_cancelled, "ckpt/opened");
        cancelled += cancel(open_until_cancelled, "elsewhere");
        cancelled += cancel(wait_in_open, "ckpt/fifo");
    }
    MUST(unlink("ckpt/fifo"));
    printf("%d cancelled\n", cancelled);
    put("ckpt/after", 2, SIZE);
    check("ckpt/before", 1, SIZE);
    check("ckpt/after", 2, SIZE);
    put("ckpt/opened", 3, SIZE);
    return 0;
}

/* Sets the limit that counts, and for good also the one up to which it may be raised again. */
static void limit(int resource, rlim_t value, int for_good)
{
    struct rlimit both;
    MUST(getrlimit(resource, &both));
    both.rlim_cur = value;
    if (for_good)
        both.rlim_max = value;
    MUST(setrlimit(resource, &both));
}

static void work(void)
{
    put("ckpt/one", 1, SIZE);
    put("ckpt/two", 2, 3 << 20);
    check("ckpt/one", 1, SIZE);
    check("ckpt/two", 2, 3 << 20);
}

/* As many descriptors as this kernel and user may have: 2^30 where both allow it. */
static int row_many_descriptors_allowed(void)
{
    struct rlimit both;
    long most = 0;
    FILE *file = fopen("/proc/sys/fs/nr_open", "r");
    if (file == NULL || fscanf(file, "%ld", &most) != 1)
        die("nr_open");
    fclose(file);
    both.rlim_cur = both.rlim_max = (rlim_t)most;
    if (setrlimit(RLIMIT_NOFILE, &both) != 0) {
        MUST(getrlimit(RLIMIT_NOFILE, &both));
        both.rlim_cur = both.rlim_max;
        MUST(setrlimit(RLIMIT_NOFILE, &both));
    }
    work();
    return 0;
}

static int row_few_descriptors_allowed(void)
{
    limit(RLIMIT_NOFILE, 8, 0);
    work();
    return 0;
}

static int row_few_descriptors_for_good(void)
{
    limit(RLIMIT_NOFILE, 8, 1);
    work();
    return 0;
}

static int row_no_locked_memory(void)
{
    limit(RLIMIT_MEMLOCK, 0, 1);
    work();
    return 0;
}

/* Room for little more than the program has mapped already. */
static void leave_little_address_space(int for_good)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld", &pages) != 1)
        die("statm");
    fclose(file);
    limit(RLIMIT_AS, (rlim_t)(pages * 4096 + (4 << 20)), for_good);
}

static int row_little_address_space(void)
{
    leave_little_address_space(0);
    work();
    return 0;
}

static int row_little_address_space_for_good(void)
{
    leave_little_address_space(1);
    work();
    return 0;
}

/* The limit is the program's: the aggregate may become larger than any of its files. */
static int row_small_files_only(void)
{
    limit(RLIMIT_FSIZE, 4 << 20, 0);
    work();
    put("ckpt/three", 3, 3 << 20);
    signal(SIGXFSZ, SIG_IGN);
    int fd = begin("ckpt/four");
    MUST(lseek(fd, (4 << 20) - 10, SEEK_SET));
    char bytes[100] = "";
    printf("up to the limit: %zd\n", write(fd, bytes, sizeof bytes));
    printf("beyond it: %zd, %d\n", write(fd, bytes, sizeof bytes), errno);
    return 0;
}

static const struct row rows[] = {
    {"small_stack", row_small_stack},
    {"checkpoint_on_term", row_checkpoint_on_term},
    {"checkpoints_on_a_timer", row_checkpoints_on_a_timer},
    {"cancelled_in_open", row_cancelled_in_open},
    {"many_descriptors_allowed", row_many_descriptors_allowed},
    {"few_descriptors_allowed", row_few_descriptors_allowed},
    {"few_descriptors_for_good", row_few_descriptors_for_good},
    {"no_locked_memory", row_no_locked_memory},
    {"little_address_space", row_little_address_space},
    {"little_address_space_for_good", row_little_address_space_for_good},
    {"small_files_only", row_small_files_only},
};

int main(int count, char **arguments)
{
    (void)count;
    return choose(rows, ROWS(rows), arguments);
}
