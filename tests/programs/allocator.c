/* An allocator like those that read their settings under their own lock: each call of malloc holds the lock while it
 * opens a file, and at first a checkpoint. A hook of open that allocates or waits for malloc would hang here. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <pthread.h>
#include <sys/mman.h>

#define ROOM (256u << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *memory;
static size_t used;

struct block {
    size_t size;
    size_t unused;
};

static void read_settings(void)
{
    char byte;
    int fd = open("/proc/sys/vm/overcommit_memory", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, &byte, 1) != 1 || close(fd) != 0)
        abort();
}

static void start(void)
{
    memory = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    /* Other programs of the same scene, a shell's children for example, have no ckpt beside them. */
    int fd = open("ckpt/settings of the allocator", O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (fd >= 0 && (write(fd, "first call\n", 11) != 11 || close(fd) != 0))
        abort();
}

void *malloc(size_t size)
{
    size_t whole = (size + sizeof(struct block) + 15) & ~(size_t)15;
    pthread_mutex_lock(&lock);
    if (memory == NULL)
        start();
    if (used % (1 << 16) < whole)
        read_settings();
    struct block *block = used + whole <= ROOM ? (struct block *)(memory + used) : NULL;
    used += block ? whole : 0;
    pthread_mutex_unlock(&lock);
    if (block == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    block->size = size;
    return block + 1;
}

void free(void *pointer)
{
    (void)pointer;
}

void *calloc(size_t count, size_t size)
{
    /* Fresh memory of a mapping is zero, and none is used twice. */
    return size != 0 && count > (size_t)-1 / size ? NULL : malloc(count * size);
}

void *realloc(void *pointer, size_t size)
{
    void *moved = malloc(size);
    if (pointer != NULL && moved != NULL) {
        size_t before = ((struct block *)pointer - 1)->size;
        memcpy(moved, pointer, before < size ? before : size);
    }
    return moved;
}
