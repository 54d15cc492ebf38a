/* Writes more than the stage holds, in the ways in which programs write. Each row runs in a directory that holds ckpt;
 * the environment says how much: FILES files of SIZE bytes. A call that comes to less than it was asked for ends the
 * program: no program must notice that a stage is full. `check` reads everything back, in another process. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

static unsigned number_of(const char *name)
{
    const char *text = getenv(name);
    if (text == NULL)
        die(name);
    return (unsigned)atol(text);
}

static unsigned files(void) { return number_of("FILES"); }
static size_t size(void) { return number_of("SIZE"); }

static const char *path_of(unsigned file)
{
    static char path[40];
    snprintf(path, sizeof path, "ckpt/file.%u", file);
    return path;
}

/* The bytes of a file, as `pour` writes them. */
static char *content(unsigned file, size_t length)
{
    char *bytes = malloc(length);
    for (size_t done = 0; done < length; done += 1024)
        fill(bytes + done, length - done < 1024 ? length - done : 1024, file + (unsigned)(done / 1024));
    return bytes;
}

static void whole(ssize_t result, size_t wanted, const char *what)
{
    if (result < 0 || (size_t)result != wanted)
        die(what);
}

static int row_write(void)
{
    for (unsigned file = 0; file < files(); file++) {
        char *bytes = content(file, size());
        int fd = open(path_of(file), O_CREAT | O_TRUNC | O_WRONLY, 0644);
        MUST(fd);
        size_t half = size() / 2;
        whole(write(fd, bytes, half), half, "write");
        struct iovec pieces[2] = {{bytes + half, 100}, {bytes + half + 100, size() - half - 100}};
        whole(writev(fd, pieces, 2), size() - half, "writev");
        MUST(close(fd));
        free(bytes);
    }
    return 0;
}

static int row_pwrite(void)
{
    for (unsigned file = 0; file < files(); file++) {
        char *bytes = content(file, size());
        int fd = open(path_of(file), O_CREAT | O_TRUNC | O_RDWR, 0644);
        MUST(fd);
        size_t third = size() / 3;
        struct iovec pieces[2] = {{bytes + third, third}, {bytes + 2 * third, size() - 2 * third}};
        whole(pwritev(fd, pieces, 2, (off_t)third), size() - third, "pwritev");
        whole(pwrite(fd, bytes, third, 0), third, "pwrite");
        MUST(close(fd));
        free(bytes);
    }
    return 0;
}

static int row_stdio(void)
{
    for (unsigned file = 0; file < files(); file++) {
        char *bytes = content(file, size());
        FILE *stream = fopen(path_of(file), "w");
        if (stream == NULL)
            die("fopen");
        whole((ssize_t)fwrite(bytes, 1, size(), stream), size(), "fwrite");
        if (fclose(stream) != 0)
            die("fclose");
        free(bytes);
    }
    return 0;
}

static int row_mmap(void)
{
    for (unsigned file = 0; file < files(); file++) {
        char *bytes = content(file, size());
        int fd = open(path_of(file), O_CREAT | O_TRUNC | O_RDWR, 0644);
        MUST(fd);
        if (file % 2 == 0) {
            MUST(ftruncate(fd, (off_t)size()));
        } else if ((errno = posix_fallocate(fd, 0, (off_t)size())) != 0) {
            die("posix_fallocate");
        }
        char *memory = mmap(NULL, size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory == MAP_FAILED)
            die("mmap");
        memcpy(memory, bytes, size());
        MUST(munmap(memory, size()));
        MUST(close(fd));
        free(bytes);
    }
    return 0;
}

/* One file that no stage can hold, through two descriptions and a duplicate, with an appender and a lock. */
static int row_single(void)
{
    size_t piece = 64 << 10, total = (size_t)files() * size();
    char *bytes = content(0, total);
    int fd = open(path_of(0), O_CREAT | O_TRUNC | O_RDWR, 0640);
    MUST(fd);
    MUST(flock(fd, LOCK_EX));
    int duplicate = dup(fd);
    MUST(duplicate);
    MUST(fcntl(duplicate, F_SETFD, FD_CLOEXEC));
    for (size_t done = 0; done < total; done += piece) {
        size_t now = total - done < piece ? total - done : piece;
        whole(write(done / piece % 2 ? fd : duplicate, bytes + done, now), now, "write");
        if (lseek(fd, 0, SEEK_CUR) != (off_t)(done + now))
            die("the offset is shared no more");
        /* What was written before is read, and written, where it was. */
        char seen[10];
        whole(pread(fd, seen, sizeof seen, (off_t)(done / 2)), sizeof seen, "pread");
        if (memcmp(seen, bytes + done / 2, sizeof seen) != 0)
            die("other bytes");
        whole(pwrite(fd, bytes, 10, 0), 10, "pwrite");
    }
    if ((fcntl(duplicate, F_GETFD) & FD_CLOEXEC) == 0 || (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0)
        die("FD_CLOEXEC");
    struct stat by_descriptor, by_path;
    MUST(fstat(fd, &by_descriptor));
    MUST(stat(path_of(0), &by_path));
    if (by_descriptor.st_ino != by_path.st_ino || by_descriptor.st_dev != by_path.st_dev)
        die("the path leads elsewhere");
    if ((by_path.st_mode & 07777) != 0640)
        die("the mode is another");
    int other = open(path_of(0), O_RDWR);
    MUST(other);
    if (flock(other, LOCK_EX | LOCK_NB) == 0)
        die("the lock is gone");
    MUST(close(other));
    MUST(close(fd));
    MUST(close(duplicate));
    return 0;
}

/* The same with O_APPEND and a second description. */
static int row_append(void)
{
    size_t piece = 50000, total = (size_t)files() * size();
    char *bytes = content(0, total);
    int first = open(path_of(0), O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0444);
    MUST(first);
    int second = open(path_of(0), O_RDONLY);
    MUST(second);
    char *seen = malloc(piece);
    for (size_t done = 0; done < total; done += piece) {
        size_t now = total - done < piece ? total - done : piece;
        whole(write(first, bytes + done, now), now, "write");
        whole(read(second, seen, now), now, "read");
        if (memcmp(seen, bytes + done, now) != 0)
            die("other bytes");
    }
    if ((fcntl(first, F_GETFL) & (O_APPEND | O_ACCMODE)) != (O_APPEND | O_WRONLY))
        die("the flags are others");
    MUST(close(first));
    MUST(close(second));
    return 0;
}

static int shared_fd;
static char *shared_bytes;

/* Every other piece, from a start of its own; what is there already is written again and again. */
static void *write_pieces(void *start)
{
    size_t piece = 8 << 10, total = (size_t)files() * size();
    for (size_t at = (size_t)start * piece; at < total; at += 4 * piece) {
        size_t now = total - at < piece ? total - at : piece;
        whole(pwrite(shared_fd, shared_bytes + at, now, (off_t)at), now, "pwrite in a thread");
        whole(pwrite(shared_fd, shared_bytes + at / 2, 100, (off_t)(at / 2)), 100, "pwrite in a thread");
    }
    return NULL;
}

static int row_threads(void)
{
    pthread_t threads[4];
    shared_bytes = content(0, (size_t)files() * size());
    shared_fd = open(path_of(0), O_CREAT | O_TRUNC | O_WRONLY, 0644);
    MUST(shared_fd);
    for (size_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, write_pieces, (void *)i);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    MUST(close(shared_fd));
    return 0;
}

/* A child shares the description: either all goes well, or a write is refused before a byte is lost. */
static int row_forked(void)
{
    size_t piece = 64 << 10, total = (size_t)files() * size(), done = 0;
    char *bytes = content(0, total);
    int fd = open(path_of(0), O_CREAT | O_TRUNC | O_RDWR, 0644), ends[2];
    MUST(fd);
    MUST(pipe(ends));
    pid_t child = fork();
    if (child == 0) {
        char end;
        close(ends[1]);
        _exit(read(ends[0], &end, 1) != 0);
    }
    while (done < total) {
        ssize_t now = write(fd, bytes + done, total - done < piece ? total - done : piece);
        if (now < 0 && errno == ENOSPC)
            break;
        MUST(now);
        done += (size_t)now;
    }
    int status;
    MUST(close(ends[1]));
    MUST(waitpid(child, &status, 0));
    char *seen = malloc(total);
    whole(pread(fd, seen, total, 0), done, "pread");
    if (memcmp(seen, bytes, done) != 0)
        die("other bytes");
    /* Nobody else has it now, so the rest finds its way. */
    whole(write(fd, bytes + done, total - done), total - done, "write at last");
    MUST(close(fd));
    return 0;
}

static int row_check(void)
{
    for (unsigned file = 0; file < files(); file++)
        check(path_of(file), file, size());
    return 0;
}

static int row_check_single(void)
{
    check(path_of(0), 0, (size_t)files() * size());
    return 0;
}

static const struct row rows[] = {
    {"write", row_write},     {"pwrite", row_pwrite},   {"stdio", row_stdio}, {"mmap", row_mmap},
    {"single", row_single},   {"append", row_append},   {"threads", row_threads}, {"forked", row_forked},
    {"check", row_check},     {"check_single", row_check_single},
};

int main(int count, char **arguments)
{
    (void)count;
    return choose(rows, ROWS(rows), arguments);
}
