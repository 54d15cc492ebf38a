# A C project whose sources, objects, library and program lie in a checkpoint directory. Argument: write | restart
set -eu
write() {
    mkdir -p ckpt/src ckpt/include ckpt/obj
    echo 'int add(int, int); int multiply(int, int);' >ckpt/include/sums.h
    for name in add:+ multiply:*; do
        printf '#include "sums.h"\nint %s(int a, int b) { return a %s b; }\n' "${name%:*}" "${name#*:}" >"ckpt/src/${name%:*}.c"
    done
    printf '#include <stdio.h>\n#include "sums.h"\nint main(void) { printf("%%d\\n", add(2, multiply(3, 4))); }\n' >ckpt/src/main.c
    cat >ckpt/Makefile <<'END'
SOURCES := $(wildcard src/*.c)
OBJECTS := $(SOURCES:src/%.c=obj/%.o)
program: obj/main.o libsums.a
	gcc -o $@ obj/main.o -L. -lsums
libsums.a: $(filter-out obj/main.o,$(OBJECTS))
	ar rcs $@ $^
obj/%.o: src/%.c include/sums.h
	gcc -O1 -pipe -Iinclude -MMD -c -o $@ $<
-include $(OBJECTS:.o=.d)
END
    make -C ckpt --no-print-directory
    show
}
restart() {
    show
    touch ckpt/src/add.c
    make -C ckpt --no-print-directory
    sed -i 's/2, multiply/5, multiply/' ckpt/src/main.c
    make -C ckpt --no-print-directory -j 2
    ( cd ckpt && gcc -save-temps -Iinclude -shared -fPIC -o libsums.so src/add.c src/multiply.c && ls *.i *.s *.o )
    strip ckpt/program
    objcopy --strip-debug ckpt/libsums.a ckpt/stripped.a
    nm ckpt/libsums.so | awk '/ T /{ print $3 }'
    show
    make -C ckpt --no-print-directory
}
show() {
    # Programs are executed from where they are staged only when they are copied out.
    cp ckpt/program program
    ./program
    make -C ckpt --no-print-directory -q && echo "up to date"
    ar t ckpt/libsums.a
}
"$1"
