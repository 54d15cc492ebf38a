/* The least that writes a checkpoint, for compilers of other C libraries and other word sizes. */
#include "checkpoint.h"

int main(void)
{
    put("ckpt/small", 25, 30000);
    check("ckpt/small", 25, 30000);
    return 0;
}
