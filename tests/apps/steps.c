/* An MPI program that never ends: in each step a file of each rank, a barrier, and rank 0 says in `latest` that the step is whole.
   The last three are kept. Arguments: write MILLISECONDS, the pause between two steps; check RANKS: prints the step that `latest` names, and
   fails if anything of it is missing or wrong. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CELLS = 20000, KEPT = 3 };

static void fail(const char *what) { perror(what); exit(9); }

static void name_of(char *name, size_t size, long step, int rank) { snprintf(name, size, "ckpt/step-%ld.%d", step, rank); }

static void fill(long *cells, long step, int rank) {
    for (long i = 0; i < CELLS; i++) cells[i] = step * 1000003 + rank * 10007 + i;
}

static void save(long *cells, long step, int rank) {
    char name[64];
    name_of(name, sizeof name, step, rank);
    fill(cells, step, rank);
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(cells, sizeof *cells, CELLS, file) != CELLS || fclose(file)) fail(name);
    name_of(name, sizeof name, step - KEPT, rank);
    if (step > KEPT && unlink(name)) fail(name);
}

static void say(long step) {
    FILE *file = fopen("ckpt/latest.new", "w");
    if (!file || fprintf(file, "%ld\n", step) < 0 || fclose(file)) fail("latest.new");
    if (rename("ckpt/latest.new", "ckpt/latest")) fail("latest");
}

static int check(int ranks) {
    long step, *cells = calloc(2 * CELLS, sizeof *cells);
    FILE *latest = fopen("ckpt/latest", "r");
    if (!latest) { puts("none"); return 0; }
    if (!cells || fscanf(latest, "%ld", &step) != 1) fail("latest");
    for (int rank = 0; rank < ranks; rank++) {
        char name[64];
        name_of(name, sizeof name, step, rank);
        FILE *file = fopen(name, "rb");
        if (!file || fread(cells, sizeof *cells, CELLS, file) != CELLS || fgetc(file) != EOF || fclose(file)) fail(name);
        fill(cells + CELLS, step, rank);
        if (memcmp(cells, cells + CELLS, CELLS * sizeof *cells)) { fprintf(stderr, "%s is wrong\n", name); return 9; }
    }
    printf("%ld\n", step);
    return 0;
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "check")) return check(atoi(arguments[2]));
    MPI_Init(&count, &arguments);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    long *cells = calloc(CELLS, sizeof *cells);
    for (long step = 1;; step++) {
        save(cells, step, rank);
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == 0) say(step);
        MPI_Barrier(MPI_COMM_WORLD);
        usleep(1000 * (useconds_t)atoi(arguments[2]));
    }
}
