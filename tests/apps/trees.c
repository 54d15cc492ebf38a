/* Walks trees by fts with most combinations of options, and prints what it yields: `trees`.
 *
 * A function orders what is in a directory; run natively and under the preloaded library it must print the same. Of paths
 * what fts_pathlen counts is shown: behind that the C library leaves a slash where a directory is skipped after fts_children.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int by_name(const FTSENT **one, const FTSENT **other) { return strcmp((*one)->fts_name, (*other)->fts_name); }

static void show(const FTSENT *seen, int options)
{
    printf("  %d %.*s [%s] info %d errno %d lengths %d %d", seen->fts_level, seen->fts_pathlen, seen->fts_path, seen->fts_name, seen->fts_info,
           seen->fts_info == FTS_NS || seen->fts_info == FTS_DNR ? seen->fts_errno : 0, seen->fts_pathlen, seen->fts_namelen);
    if (options & FTS_NOCHDIR)
        printf(" by %s", seen->fts_accpath);
    if (seen->fts_info == FTS_DC)
        printf(" as %s", seen->fts_cycle->fts_name);
    if (!(options & FTS_NOSTAT) && seen->fts_info != FTS_NS)
        printf(" mode %o size %ld", seen->fts_statp->st_mode, S_ISREG(seen->fts_statp->st_mode) ? (long)seen->fts_statp->st_size : 0);
    printf("\n");
}

static void children(FTS *walk, int names_only)
{
    errno = 77;
    FTSENT *child = fts_children(walk, names_only ? FTS_NAMEONLY : 0);
    printf("   children errno %d:", errno);
    for (; child; child = child->fts_link)
        printf(" %s", child->fts_name);
    printf("\n");
}

/* `wish` is what is asked for at some names. */
static void walk(char **roots, int options, int wish)
{
    FTS *walk = fts_open(roots, options, by_name);
    printf("%s ... options %d wish %d: %s %d\n", roots[0], options, wish, walk ? "open" : "failed", walk ? 0 : errno);
    if (!walk)
        return;
    if (wish == 5)
        children(walk, 0);
    FTSENT *seen;
    int count = 0, asked = 0;
    while ((errno = 77, seen = fts_read(walk))) {
        show(seen, options);
        if (wish == 6 && ++count == 7)
            break;
        if (wish == 5 || wish == 7)
            children(walk, wish == 7);
        if (wish == FTS_SKIP && (!strcmp(seen->fts_name, "sub") || !strcmp(seen->fts_name, "deep")))
            printf("  set: %d\n", fts_set(walk, seen, FTS_SKIP));
        if (wish == 9 && seen->fts_info == FTS_D) {
            children(walk, count++ % 2);
            printf("  set: %d\n", fts_set(walk, seen, strcmp(seen->fts_name, "ckpt") ? FTS_SKIP : 0));
        }
        if (wish == FTS_FOLLOW && (seen->fts_info == FTS_SL))
            printf("  set: %d\n", fts_set(walk, seen, FTS_FOLLOW));
        if (wish == FTS_AGAIN && !strcmp(seen->fts_name, "stub") && !asked++)
            printf("  set: %d\n", fts_set(walk, seen, FTS_AGAIN));
        if (wish == 8 && seen->fts_info == FTS_D)
            for (FTSENT *child = fts_children(walk, 0); child; child = child->fts_link)
                if (child->fts_info == FTS_SL || !strcmp(child->fts_name, "sub"))
                    fts_set(walk, child, FTS_SKIP);
    }
    printf("  end errno %d\n", seen ? 0 : errno);
    errno = 77;
    int closed = fts_close(walk);
    printf("  close %d errno %d\n", closed, errno);
}

int main(void)
{
    char *lists[][4] = {{"ckpt"}, {"ckpt/"}, {"ckpt/stub"}, {"ckpt/link", "ckpt/sub"}, {"ckpt/linkdir"}, {"ckpt/missing", "ckpt/dangling"},
                        {"elsewhere", "ckpt/sub/deep///"}, {"."}, {""}, {"ckpt/fresh/below", "ckpt/sub/../sub"}};
    int kinds[] = {FTS_PHYSICAL, FTS_LOGICAL, FTS_PHYSICAL | FTS_NOSTAT, FTS_PHYSICAL | FTS_COMFOLLOW, FTS_PHYSICAL | FTS_SEEDOT, FTS_PHYSICAL | FTS_XDEV, 0};
    for (unsigned list = 0; list < sizeof lists / sizeof *lists; list++)
        for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            walk(lists[list], kinds[kind] | FTS_NOCHDIR, 0);
            walk(lists[list], kinds[kind], 0);
        }
    for (int wish = 1; wish < 9; wish++) {
        walk(lists[0], FTS_PHYSICAL | FTS_NOCHDIR, wish);
        walk(lists[0], FTS_LOGICAL, wish);
    }
    walk(lists[0], FTS_PHYSICAL, 9);
    walk(lists[0], FTS_LOGICAL, 9);
    walk(lists[3], FTS_LOGICAL, 9);
    FTS *open = fts_open(lists[0], FTS_PHYSICAL, NULL);
    printf("%d %d %d", fts_set(open, fts_read(open), 9), fts_children(open, 7) == NULL, errno);
    printf(" %d\n", fts_close(open));
    printf("%d %d\n", fts_open(lists[0], 0x1000, NULL) == NULL, errno);
    return 0;
}
