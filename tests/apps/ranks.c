/* An MPI program with one checkpoint file for each rank: temporary name, fsync, rename. Argument: write | restart */
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CELLS = 400000, STEPS = 5 };
struct state { long step; double cells[CELLS]; };

static void fail(const char *what) { perror(what); MPI_Abort(MPI_COMM_WORLD, 1); }

static void advance(struct state *state, int rank) {
    for (long i = 0; i < CELLS; i++)
        state->cells[i] = state->cells[i] * 0.75 + (double)((i * 31 + rank + state->step) % 1009);
    state->step++;
}

static void save(const struct state *state, int rank) {
    char temporary[64], name[64];
    snprintf(temporary, sizeof temporary, "ckpt/.rank-%04d.part", rank);
    snprintf(name, sizeof name, "ckpt/rank-%04d.state", rank);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    if (fd < 0) fail(temporary);
    const char *bytes = (const char *)state;
    for (size_t done = 0; done < sizeof *state;) {
        ssize_t count = write(fd, bytes + done, sizeof *state - done);
        if (count <= 0) fail(temporary);
        done += (size_t)count;
    }
    if (fsync(fd) || close(fd)) fail(temporary);
    if (rename(temporary, name)) fail(name);
}

static void load(struct state *state, int rank) {
    char name[64];
    snprintf(name, sizeof name, "ckpt/rank-%04d.state", rank);
    FILE *file = fopen(name, "rb");
    if (!file || fread(state, sizeof *state, 1, file) != 1 || fgetc(file) != EOF || fclose(file)) fail(name);
}

static void history(const struct state *state, int rank) {
    char name[64];
    snprintf(name, sizeof name, "ckpt/history-%04d.txt", rank);
    FILE *file = fopen(name, "a");
    if (!file || fprintf(file, "%ld %.17g\n", state->step, state->cells[state->step]) < 0 || fclose(file)) fail(name);
}

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    struct state *state = calloc(1, sizeof *state);
    if (!state) fail("memory");
    if (!strcmp(arguments[1], "restart")) load(state, rank);
    for (int step = 0; step < STEPS; step++) {
        advance(state, rank);
        save(state, rank);
        history(state, rank);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    double mine = 0, all = 0;
    for (long i = 0; i < CELLS; i++) mine += state->cells[i];
    MPI_Reduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("step %ld sum %.17g\n", state->step, all);
    MPI_Finalize();
    return 0;
}
