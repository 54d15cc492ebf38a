/* A program that loads plugin.so, in the way that the first argument says, and has it write a checkpoint. */
#define _GNU_SOURCE
#include "checkpoint.h"

#include <dlfcn.h>

int main(int count, char **arguments)
{
    int binding = count > 1 && strcmp(arguments[1], "deep") == 0 ? RTLD_DEEPBIND : 0;
    void *plugin = dlopen("../plugin.so", RTLD_NOW | RTLD_LOCAL | binding);
    if (plugin == NULL)
        die("dlopen");
    void (*save)(void) = (void (*)(void))dlsym(plugin, "save");
    save();
    put("ckpt/from the program", 24, 30000);
    check("ckpt/from the plugin", 23, 30000);
    if (dlclose(plugin) != 0)
        die("dlclose");
    return 0;
}
