/* Calls functions that the C library has in several versions, in the way that only the newest one understands. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    FILE *made = fopen("ckpt/made", "w");
    if (!made || fputs("text\n", made) < 0 || fclose(made) != 0) return 1;
    char *checkpoint = realpath("ckpt/made", NULL), *other = realpath("/usr/bin/..", NULL);
    if (!checkpoint || !other) return 2;
    printf("%s %s\n", strrchr(checkpoint, '/'), other);
    free(checkpoint);
    free(other);
    return 0;
}
