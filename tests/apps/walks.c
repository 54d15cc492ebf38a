/* Walks `ckpt` by ftw and nftw with every combination of flags, and prints what they visit: `walks`.
 *
 * The order within a directory is the file system's own, so lines are sorted within each walk where links are not
 * followed in loops; run natively and under the preloaded library it must print the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *lines[1000];
static int count, stop_at, answer;

static int add(const char *path, const struct stat *seen, int kind, const struct FTW *place)
{
    char line[2 * PATH_MAX], here[PATH_MAX] = "";
    int known = kind != FTW_NS && kind != FTW_D && kind != FTW_DP && kind != FTW_DNR && kind != FTW_SLN;
    if (place && !getcwd(here, sizeof here))
        strcpy(here, "?");
    snprintf(line, sizeof line, "  %s kind %d mode %o size %ld base %d level %d in %s", path, kind,
             kind == FTW_NS ? 0 : seen->st_mode, known ? (long)seen->st_size : 0, place ? place->base : 0, place ? place->level : 0, here);
    lines[count++] = strdup(line);
    return 0;
}

static int visit(const char *path, const struct stat *seen, int kind) { return add(path, seen, kind, NULL); }

static int visit_place(const char *path, const struct stat *seen, int kind, struct FTW *place)
{
    add(path, seen, kind, place);
    const char *name = path + place->base;
    if (stop_at && !strcmp(name, stop_at == 1 ? "sub" : "unmanaged"))
        return answer;
    return 0;
}

static int by_text(const void *one, const void *other) { return strcmp(*(char **)one, *(char **)other); }

static void finish(const char *what, const char *path, int flags, int streams, int result)
{
    int number = errno;
    char here[PATH_MAX];
    printf("%s %s flags %d streams %d: %d errno %d in %s, %d visits\n", what, path, flags, streams, result,
           result == -1 ? number : 0, getcwd(here, sizeof here), count);
    qsort(lines, count, sizeof *lines, by_text);
    for (int i = 0; i < count; i++)
        puts(lines[i]), free(lines[i]);
    count = 0;
}

int main(void)
{
    static const char *paths[] = {"ckpt", "ckpt/", "ckpt/stub", "ckpt/fresh", "ckpt/dangling", "ckpt/link", "ckpt/linkdir",
                                  "ckpt/missing", "ckpt/sub/deep///", "elsewhere", "elsewhere/door", "", "ckpt/stub/below", "/proc/self/task"};
    for (unsigned i = 0; i < sizeof paths / sizeof *paths - 1; i++) {
        for (int streams = -1; streams < 20; streams += 3) {
            for (int flags = 0; flags < 33; flags++) {
                /* Which of two names of one directory is walked depends on the order. */
                int follows = !(flags & FTW_PHYS);
                if (follows && strcmp(paths[i], "ckpt/stub") && strcmp(paths[i], "ckpt/dangling") && strcmp(paths[i], "ckpt/sub/deep///"))
                    continue;
                finish("nftw", paths[i], flags, streams, nftw(paths[i], visit_place, streams, flags));
            }
        }
        if (strcmp(paths[i], "ckpt") && strcmp(paths[i], "ckpt/") && strncmp(paths[i], "elsewhere", 9))
            finish("ftw", paths[i], 0, 5, ftw(paths[i], visit, 5));
    }
    for (stop_at = 1; stop_at < 3; stop_at++)
        for (answer = 0; answer < 5; answer++)
            for (int flags = 1; flags < 32; flags += 2) {
                int result = nftw("ckpt", visit_place, 5, flags);
                /* How far it had come depends on the order. */
                int ends = answer && (!(flags & FTW_ACTIONRETVAL) || answer == FTW_STOP || answer == 4 || answer == FTW_SKIP_SIBLINGS);
                for (; ends && count; count--)
                    free(lines[count - 1]);
                finish("nftw with answers", "ckpt", flags, answer, result);
            }
    return 0;
}
