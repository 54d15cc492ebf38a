/* Every way in which a program ends with work in its hands. Run in a directory that holds ckpt; the same row must
 * leave the same bytes and the same status with and without a preloaded library. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <linux/io_uring.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define SIZE 70000

/* A descriptor with bytes, and a stream with bytes that are still in its buffer. */
static void leave_open(void)
{
    put("ckpt/closed", 1, SIZE);
    pour(begin("ckpt/left open"), 2, SIZE);
    FILE *stream = fopen("ckpt/stream", "w");
    for (int i = 0; i < 5000; i++)
        fprintf(stream, "line %d\n", i);
}

static int row_stream_left_open(void)
{
    leave_open();
    return 3;
}

static int row_immediate_exit(void)
{
    leave_open();
    _exit(4);
}

static int row_abort(void)
{
    leave_open();
    abort();
}

static int row_kill(void)
{
    leave_open();
    raise(SIGKILL);
    return 0;
}

static void last_words(void)
{
    put("ckpt/last words", 5, SIZE);
}

static int row_quick_exit(void)
{
    leave_open();
    at_quick_exit(last_words);
    quick_exit(6);
}

static int row_exit_handler(void)
{
    atexit(last_words);
    put("ckpt/before", 1, SIZE);
    return 0;
}

/* The descriptor is closed, and the pages are written afterwards: by munmap in one file, by the end in the other. */
static int row_mapped_after_close(void)
{
    const char *names[] = {"ckpt/unmapped", "ckpt/mapped until the end"};
    for (int i = 0; i < 2; i++) {
        int fd = open(names[i], O_CREAT | O_TRUNC | O_RDWR, 0644);
        MUST(fd);
        MUST(ftruncate(fd, SIZE));
        char *bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        MUST(close(fd));
        fill(bytes, SIZE, (unsigned)i);
        if (i == 0)
            MUST(munmap(bytes, SIZE));
    }
    return 0;
}

struct ring {
    int fd;
    unsigned *tail, *index;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *results;
    unsigned *head;
};

static void open_ring(struct ring *ring)
{
    struct io_uring_params about = {0};
    ring->fd = (int)syscall(SYS_io_uring_setup, 4, &about);
    MUST(ring->fd);
    int access = PROT_READ | PROT_WRITE;
    char *rings = mmap(NULL, 1 << 16, access, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, 4096, access, MAP_SHARED, ring->fd, IORING_OFF_SQES);
    char *results = about.features & IORING_FEAT_SINGLE_MMAP
        ? rings : mmap(NULL, 1 << 16, access, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
    ring->tail = (unsigned *)(rings + about.sq_off.tail);
    ring->index = (unsigned *)(rings + about.sq_off.array);
    ring->results = (struct io_uring_cqe *)(results + about.cq_off.cqes);
    ring->head = (unsigned *)(results + about.cq_off.head);
}

/* The table of a ring holds the last reference to the file: nothing is left that a hook could see. */
static int row_ring_holds_the_file(void)
{
    struct ring ring;
    open_ring(&ring);
    int fd = begin("ckpt/by the ring");
    MUST(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1));
    MUST(close(fd));
    static char bytes[SIZE];
    fill(bytes, SIZE, 9);
    ring.entries[0] = (struct io_uring_sqe){
        .opcode = IORING_OP_WRITE, .flags = IOSQE_FIXED_FILE, .fd = 0, .addr = (unsigned long)bytes, .len = SIZE};
    ring.index[0] = 0;
    __atomic_store_n(ring.tail, 1, __ATOMIC_RELEASE);
    MUST(syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
    printf("written: %d\n", ring.results[0].res);
    return 0;
}

static const struct row rows[] = {
    {"stream_left_open", row_stream_left_open},
    {"immediate_exit", row_immediate_exit},
    {"abort", row_abort},
    {"kill", row_kill},
    {"quick_exit", row_quick_exit},
    {"exit_handler", row_exit_handler},
    {"mapped_after_close", row_mapped_after_close},
    {"ring_holds_the_file", row_ring_holds_the_file},
};

int main(int count, char **arguments)
{
    (void)count;
    return choose(rows, ROWS(rows), arguments);
}
