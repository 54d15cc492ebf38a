/* A library that a program loads while it runs; it writes a checkpoint through its own binding of open. */
#define _GNU_SOURCE
#include "checkpoint.h"

void save(void)
{
    put("ckpt/from the plugin", 23, 30000);
}
