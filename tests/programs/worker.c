/* Threads that allocate and write checkpoints at once; linked with early.so where the test asks for it. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/wait.h>

#ifdef WITH_EARLY
void early(void);
#endif

static void *work(void *number)
{
    unsigned self = (unsigned)(size_t)number;
    for (unsigned i = 0; i < 20; i++) {
        char *name = malloc(100 + i * 1000), *older = strdup("ckpt/0.older");
        older[5] = (char)('0' + self);
        snprintf(name, 100, "ckpt/%u.newer", self);
        put(name, self + i, 4000 + i);
        if (rename(name, older) != 0)
            die("rename");
        char *resolved = realpath(older, NULL);
        if (resolved == NULL)
            die("realpath");
        free(resolved);
        FILE *stream = fopen(name, "w");
        fprintf(stream, "round %u of %u\n", i, self);
        if (stream == NULL || fclose(stream) != 0)
            die("fclose");
        free(name);
        free(older);
    }
    return NULL;
}

int main(void)
{
#ifdef WITH_EARLY
    early();
#endif
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    struct dirent **list;
    int count = scandir("ckpt", &list, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (list[i]->d_name[0] != '.')
            printf("%s\n", list[i]->d_name);
        free(list[i]);
    }
    free(list);
    pid_t child = fork();
    if (child == 0) {
        char *memory = malloc(100000);
        put("ckpt/child", 1, 100);
        free(memory);
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0));
    printf("child: %d\n", status);
    return 0;
}
