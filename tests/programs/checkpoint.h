/* What the programs of this directory share: writing and checking files whose bytes follow from a number.
 * A failed call ends the program with a line that names it; nothing here may retry or hide an error. */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* Only calls that a signal handler may make: some rows write their checkpoint in one. */
static inline void die(const char *what)
{
    char line[200];
    int length = snprintf(line, sizeof line, "%s: error %d\n", what, errno);
    if (write(2, line, (size_t)length) < 0)
        _exit(98);
    _exit(99);
}

#define MUST(call) ((call) < 0 ? (die(#call), -1) : 0)

static inline void fill(char *buffer, size_t size, unsigned number)
{
    for (size_t i = 0; i < size; i++)
        buffer[i] = (char)((i * 31 + number * 7 + (i >> 8)) & 0xff);
}

/* Writes the file's bytes to an open descriptor, in small pieces that suit a small stack. */
static inline void pour(int fd, unsigned number, size_t size)
{
    char piece[1024];
    for (size_t done = 0; done < size; done += sizeof piece) {
        size_t now = size - done < sizeof piece ? size - done : sizeof piece;
        fill(piece, now, number + (unsigned)(done / sizeof piece));
        for (size_t written = 0; written < now;) {
            ssize_t got = write(fd, piece + written, now - written);
            if (got < 0 && errno != EINTR)
                die("write");
            if (got > 0)
                written += (size_t)got;
        }
    }
}

/* Opens a new file; nothing else may be open at a lower number than natively. */
static inline int begin(const char *path)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    MUST(fd);
    return fd;
}

static inline int put(const char *path, unsigned number, size_t size)
{
    int fd = begin(path);
    pour(fd, number, size);
    MUST(close(fd));
    return fd;
}

/* Reads a file that `put` has written, and says so. */
static inline void check(const char *path, unsigned number, size_t size)
{
    char piece[1024], expected[1024];
    int fd = open(path, O_RDONLY);
    MUST(fd);
    size_t total = 0;
    for (;;) {
        size_t now = 0;
        while (now < sizeof piece) {
            ssize_t got = read(fd, piece + now, sizeof piece - now);
            if (got < 0 && errno != EINTR)
                die("read");
            if (got == 0)
                break;
            if (got > 0)
                now += (size_t)got;
        }
        fill(expected, now, number + (unsigned)(total / sizeof piece));
        if (memcmp(piece, expected, now) != 0) {
            errno = 0;
            die(path);
        }
        total += now;
        if (now < sizeof piece)
            break;
    }
    MUST(close(fd));
    if (total != size) {
        errno = 0;
        die(path);
    }
    printf("%s: %zu bytes\n", path, total);
}

/* A program is a table of rows; the first argument chooses one. */
struct row {
    const char *name;
    int (*run)(void);
};

static inline int choose(const struct row *rows, int count, char **arguments)
{
    for (int i = 0; i < count && arguments[1]; i++)
        if (strcmp(rows[i].name, arguments[1]) == 0)
            return rows[i].run();
    fprintf(stderr, "there is no such row\n");
    return 97;
}

#define ROWS(rows) ((int)(sizeof(rows) / sizeof *(rows)))

#endif
