/* Calls functions of which the C library has several versions by their oldest ones, as programs do that were linked when
 * there were no others: `older`. Only the x86-64 C library has versions as old as these.
 *
 * Run natively and under the preloaded library it must print the same, but for the path of the directory.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

__asm__(".symver realpath, realpath@GLIBC_2.2.5");
__asm__(".symver glob, glob@GLIBC_2.2.5");
__asm__(".symver glob64, glob64@GLIBC_2.2.5");
__asm__(".symver nftw, nftw@GLIBC_2.2.5");
__asm__(".symver nftw64, nftw64@GLIBC_2.2.5");
__asm__(".symver posix_spawn, posix_spawn@GLIBC_2.2.5");
__asm__(".symver posix_spawnp, posix_spawnp@GLIBC_2.2.5");
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");

static char visited[100][PATH_MAX];
static int count;

static int visit(const char *path, const struct stat *seen, int kind, struct FTW *place)
{
    snprintf(visited[count++], PATH_MAX, "%s %d %d %d %lo", path, kind, place->base, place->level, (long)seen->st_mode);
    return 0;
}

static int visit64(const char *path, const struct stat64 *seen, int kind, struct FTW *place)
{
    return visit(path, (const struct stat *)seen, kind, place);
}

static int by_text(const void *one, const void *other) { return strcmp(one, other); }

static void walked(const char *what, int result)
{
    qsort(visited, count, PATH_MAX, by_text);
    printf("%s: %d\n", what, result);
    for (int index = 0; index < count; index++) printf("  %s\n", visited[index]);
    count = 0;
}

static void resolved(const char *path)
{
    char room[PATH_MAX] = "";
    errno = 0;
    char *found = realpath(path, room);
    printf("realpath %s: %s errno %d\n", path, found ? found : "no", found ? 0 : errno);
}

static void found(const char *pattern, int flags)
{
    glob_t names = {0};
    int result = glob(pattern, flags, NULL, &names);
    printf("glob %s flags %x: %d\n", pattern, flags, result);
    for (size_t index = 0; result == 0 && index < names.gl_pathc; index++) printf("  %s\n", names.gl_pathv[index]);
    if (result == 0) globfree(&names);
    glob64_t more = {0};
    result = glob64(pattern, flags, NULL, &more);
    printf("glob64: %d of %zu\n", result, (size_t)more.gl_pathc);
    if (result == 0) globfree64(&more);
}

static void spawned(const char *path, int is_searched)
{
    char *arguments[] = {(char *)path, "one", "two", NULL};
    pid_t child = 0;
    int status = 0;
    fflush(stdout);
    int result = (is_searched ? posix_spawnp : posix_spawn)(&child, path, NULL, NULL, arguments, environ);
    if (result == 0) waitpid(child, &status, 0);
    printf("spawned %s: %d status %x\n", path, result, status);
}

int main(void)
{
    const char *const paths[] = {"ckpt/stub", "ckpt/fresh", "ckpt/link", "ckpt/dangling", "ckpt/linkdir/inner", "elsewhere/door/stub", "ckpt/missing", "ckpt/sub/.."};
    for (unsigned path = 0; path < sizeof paths / sizeof *paths; path++) resolved(paths[path]);
    found("ckpt/s*", 0);
    found("ckpt/*/*", GLOB_MARK);
    found("elsewhere/door/[f-l]*", 0);
    found("ckpt/none*", GLOB_NOCHECK);
    walked("nftw", nftw("ckpt/sub", visit, 8, FTW_PHYS));
    walked("nftw, following", nftw("ckpt/linkdir", visit, 8, 0));
    walked("nftw64", nftw64("ckpt/sub", visit64, 8, FTW_DEPTH));
    spawned("ckpt/program", 0);
    spawned("ckpt/program-link", 1);
    spawned("ckpt/quiet-script", 0);
    spawned("ckpt/not-executable", 0);
    spawned("ckpt/missing", 1);
    void *library = dlopen("ckpt/libthing.so", RTLD_NOW);
    int (*answer)(void) = library ? (int (*)(void))dlsym(library, "answer") : NULL;
    printf("library: %d\n", answer ? answer() : -1);
    return 0;
}
