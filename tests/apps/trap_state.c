/* A program that no library can be preloaded into: built with -static. Writes and reads checkpoints in ckpt by every
 * kind of path call, and prints what it saw, so that two runs can be compared. Usage: trap_state write|read|many N */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utime.h>

#define SAY(call) (errno = 0, printf("%s = %ld, errno %d\n", #call, (long)(call), errno))

static void put(const char *path, const char *text, int times)
{
    FILE *file = fopen(path, "w");
    if (!file) {
        printf("fopen %s: errno %d\n", path, errno);
        return;
    }
    while (times-- > 0)
        fputs(text, file);
    printf("%s closed: %d\n", path, fclose(file));
}

static void get(const char *path)
{
    char bytes[4096];
    unsigned long sum = 5381, length = 0;
    struct stat by_name, by_descriptor;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;
    if (file < 0) {
        printf("%s: errno %d\n", path, errno);
        return;
    }
    while ((got = read(file, bytes, sizeof bytes)) > 0)
        for (length += got; got > 0; got--)
            sum = sum * 33 + (unsigned char)bytes[got - 1];
    int same = stat(path, &by_name) == 0 && fstat(file, &by_descriptor) == 0 && by_name.st_ino == by_descriptor.st_ino
        && by_name.st_dev == by_descriptor.st_dev;
    printf("%s: %lu bytes, sum %lx, mode %o, links %lu, one identity %d, cloexec %d\n", path, length, sum,
        by_name.st_mode, (unsigned long)by_name.st_nlink, same, fcntl(file, F_GETFD));
    close(file);
}

static int by_name(const struct dirent **one, const struct dirent **other)
{
    return strcmp((*one)->d_name, (*other)->d_name);
}

static void list(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, 0, by_name);
    printf("%s holds %d:", path, count);
    for (int index = 0; index < count; index++)
        printf(" %s/%d", names[index]->d_name, names[index]->d_type);
    printf("\n");
}

/* Rewinding, going back to a position, and removing names while they are listed. */
static void walk(const char *path)
{
    DIR *stream = opendir(path);
    int first = 0, second = 0, third = 0, removed = 0;
    struct dirent *entry;
    char name[PATH_MAX], kept[256] = "";
    long middle = 0;
    while ((entry = readdir(stream))) {
        if (++first == 100)
            middle = telldir(stream);
        else if (first == 101)
            strcpy(kept, entry->d_name);
    }
    rewinddir(stream);
    while (readdir(stream))
        second++;
    seekdir(stream, middle);
    entry = readdir(stream);
    int is_same = entry && strcmp(entry->d_name, kept) == 0;
    for (third = 101; readdir(stream);)
        third++;
    rewinddir(stream);
    while ((entry = readdir(stream))) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        removed += entry->d_name[0] == 'n' && unlink(name) == 0;
    }
    closedir(stream);
    printf("walked %d, again %d, from the middle %d (same %d), removed %d, rmdir %d\n", first, second, third, is_same,
        removed, rmdir(path));
}

static void write_all(void)
{
    char name[PATH_MAX], target[PATH_MAX], here[PATH_MAX];
    struct timespec times[2] = { { 1000000000, 5 }, { 1000000001, 6 } };
    struct timeval micro[2] = { { 1000000002, 7 }, { 1000000003, 8 } };
    struct stat found;

    put("ckpt/first", "0123456789abcdef", 10000);
    put("ckpt/../ckpt//second", "x", 1);
    SAY(mkdir("ckpt/step", 0750));
    SAY(chdir("ckpt/step"));
    put("rank0", "rank zero ", 5000);
    put("../tmp", "renamed into place", 3);
    SAY(rename("../tmp", "current"));
    SAY(symlink("current", "latest"));
    SAY(link("rank0", "rank0.again"));
    SAY(chdir("../.."));
    int directory = open("ckpt/step", O_RDONLY | O_DIRECTORY);
    int file = openat(directory, "by-directory", O_CREAT | O_EXCL | O_WRONLY, 0604);
    SAY(write(file, "abc", 3));
    SAY(close(file));
    SAY(openat(directory, "by-directory", O_CREAT | O_EXCL | O_WRONLY, 0604));
    SAY(faccessat(directory, "by-directory", R_OK, 0));
    SAY(fchmodat(directory, "by-directory", 0640, 0));
    SAY(utimensat(directory, "by-directory", times, 0));
    SAY(fstatat(directory, "by-directory", &found, AT_SYMLINK_NOFOLLOW));
    printf("times %ld.%ld\n", (long)found.st_mtim.tv_sec, found.st_mtim.tv_nsec);
    SAY(utimes("ckpt/second", micro));
    SAY(stat("ckpt/second", &found));
    printf("times %ld.%ld\n", (long)found.st_mtim.tv_sec, found.st_mtim.tv_nsec);
    SAY(truncate("ckpt/second", 12345));
    SAY(access("ckpt/nothing", F_OK));
    SAY(unlink("ckpt/nothing"));
    SAY(rmdir("ckpt/step"));
    SAY(open("ckpt/first/not-a-directory", O_RDONLY));
    SAY(rename("ckpt/nothing", "ckpt/other"));
    SAY(readlink("ckpt/step/latest", target, sizeof target));
    printf("leads to %.7s\n", target);
    SAY(unlinkat(directory, "rank0.again", 0));
    umask(077);
    put("ckpt/private", "umask", 1);
    umask(022);
    file = open("ckpt/private", O_RDONLY);
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, target, sizeof target - 1);
    target[length > 0 ? length : 0] = 0;
    getcwd(here, sizeof here);
    printf("shown as %s\n", strncmp(target, here, strlen(here)) ? target : target + strlen(here));
    printf("real path %s\n", realpath("ckpt/step/latest", target) ? target + strlen(here) : "none");
    close(file);
    SAY(mkdir("ckpt/many", 0777));
    for (int number = 0; number < 600; number++) {
        snprintf(name, sizeof name, "ckpt/many/name-of-some-length-%d", number);
        close(open(name, O_CREAT | O_WRONLY, 0644));
    }
    walk("ckpt/many");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        put("ckpt/child", "forked", 1000);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    put("outside", "not a checkpoint", 2);
    SAY(rename("ckpt/second", "moved-out"));
    get("moved-out");
    close(directory);
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    if (strcmp(words[1], "many") == 0) {
        int file = open("ckpt/many-writes", O_CREAT | O_WRONLY, 0644);
        for (int number = atoi(words[2]); number > 0; number--)
            if (write(file, words[0], 1) != 1)
                return 1;
        return close(file);
    }
    if (strcmp(words[1], "write") == 0)
        write_all();
    list("ckpt");
    list("ckpt/step");
    get("ckpt/first");
    get("ckpt/second");
    get("ckpt/step/rank0");
    get("ckpt/step/latest");
    get("ckpt/step/by-directory");
    get("ckpt/private");
    get("ckpt/child");
    get("ckpt/nothing");
    get("outside");
    return 7;
}
