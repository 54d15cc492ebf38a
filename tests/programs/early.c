/* A library that a program is linked with: it writes a checkpoint before a preloaded library is ready, and another
 * one after that has ended. */
#define _GNU_SOURCE
#include "checkpoint.h"

__attribute__((constructor)) static void in_the_constructor(void)
{
    put("ckpt/from a constructor", 21, 30000);
}

__attribute__((destructor)) static void in_the_destructor(void)
{
    put("ckpt/from a destructor", 22, 30000);
    check("ckpt/from a constructor", 21, 30000);
}

void early(void)
{
}
