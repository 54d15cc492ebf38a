/* What a program can see of its files beside their bytes: names, error numbers, descriptor flags. Run in a directory
 * that holds ckpt; the same row must print and leave the same with and without a preloaded library. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <sys/mman.h>

#define SIZE 70000

/* The kernel's name of an open file, without the directory that the two sides differ in. */
static void show_name(int fd)
{
    char link[40], name[5000], here[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    MUST(length);
    name[length] = '\0';
    if (getcwd(here, sizeof here) == NULL)
        die("getcwd");
    printf("%s\n", strncmp(name, here, strlen(here)) == 0 ? name + strlen(here) : name);
}

static void show_resolved(const char *path)
{
    char here[4096], *name = realpath(path, NULL);
    if (name == NULL || getcwd(here, sizeof here) == NULL)
        die("realpath");
    printf("%s\n", strncmp(name, here, strlen(here)) == 0 ? name + strlen(here) : name);
    free(name);
}

static int row_names(void)
{
    int fd = begin("ckpt/first");
    show_name(fd);
    MUST(rename("ckpt/first", "ckpt/second"));
    show_name(fd);
    show_resolved("ckpt/../ckpt//second");
    MUST(symlink("second", "ckpt/pointer"));
    show_resolved("ckpt/pointer");
    MUST(unlink("ckpt/second"));
    MUST(close(fd));
    put("ckpt/third", 1, SIZE);
    return 0;
}

/* errno is the program's as long as nothing fails. */
static int row_errno_is_kept(void)
{
    struct stat about;
    char text[100];
    errno = 77;
    int fd = open("ckpt/file", O_CREAT | O_TRUNC | O_RDWR, 0644);
    if (write(fd, "bytes\n", 6) != 6)
        die("write");
    printf("after open: %d\n", errno);
    MUST(fsync(fd));
    MUST(close(fd));
    MUST(stat("ckpt/file", &about));
    MUST(lstat("ckpt/file", &about));
    MUST(access("ckpt/file", R_OK));
    MUST(chmod("ckpt/file", 0600));
    MUST(truncate("ckpt/file", 3));
    printf("after looking: %d\n", errno);
    MUST(mkdir("ckpt/directory", 0755));
    MUST(rename("ckpt/file", "ckpt/directory/file"));
    MUST(link("ckpt/directory/file", "ckpt/linked"));
    MUST(symlink("directory/file", "ckpt/pointer"));
    MUST(readlink("ckpt/pointer", text, sizeof text));
    MUST(unlink("ckpt/linked"));
    MUST(utimensat(AT_FDCWD, "ckpt/directory/file", NULL, 0));
    printf("after changing names: %d\n", errno);
    MUST(close(open("ckpt/directory/file", O_RDONLY)));
    printf("in the end: %d\n", errno);
    return 0;
}

static int row_direct(void)
{
    int fd = open("ckpt/direct", O_CREAT | O_TRUNC | O_RDWR | O_DIRECT, 0644);
    MUST(fd);
    char *pages = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(pages, 1 << 20, 3);
    printf("written: %zd\n", write(fd, pages, 1 << 20));
    printf("read: %zd\n", pread(fd, pages, 1 << 16, 1 << 16));
    MUST(close(fd));
    return 0;
}

/* Close-on-exec and the status flags are those that were asked for, on the lowest free number. */
static int row_flags(void)
{
    const int asked[] = {O_WRONLY, O_RDWR | O_CLOEXEC, O_WRONLY | O_APPEND, O_RDWR | O_NONBLOCK, O_WRONLY | O_SYNC};
    for (int i = 0; i < 5; i++) {
        int fd = open("ckpt/file", asked[i] | O_CREAT, 0640);
        MUST(fd);
        int status = fcntl(fd, F_GETFL);
        printf("%d: %#x %#x\n", fd, status, fcntl(fd, F_GETFD));
        if (i != 2)
            MUST(close(fd));
    }
    put("ckpt/file", 1, SIZE);
    return 0;
}

static const struct row rows[] = {
    {"names", row_names},
    {"errno_is_kept", row_errno_is_kept},
    {"direct", row_direct},
    {"flags", row_flags},
};

int main(int count, char **arguments)
{
    (void)count;
    return choose(rows, ROWS(rows), arguments);
}
