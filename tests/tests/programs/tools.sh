# tar, cp, mv, rm, find, du and their relatives on trees of files and links in a checkpoint directory. Argument: write | restart
set -eu
# Without the store, and the links of directories, which count it.
listed() { find "$@" -path ckpt/.sheaf -prune -o -type d -printf '%y %m %p\n' -o -printf '%y %m %n %l %p\n' | sort; }
sized() { find "$@" -path ckpt/.sheaf -prune -o -type f -printf '%s %p\n' | sort; }
write() {
    mkdir -p ckpt/run/fields/deep
    for number in $(seq 40); do seq $((number * 100)) >"ckpt/run/fields/field-$number"; done
    cp ckpt/run/fields/field-* ckpt/run/fields/deep
    ln ckpt/run/fields/field-1 ckpt/run/hard
    ln -s fields/field-2 ckpt/run/soft
    truncate -s 1M ckpt/run/sparse
    find ckpt/run -exec touch -h -d '2020-02-02T02:02:02Z' {} +
    tar -C ckpt --sort=name --owner=0 --group=0 --numeric-owner -cf ckpt/run.tar run
    tar -C ckpt --sort=name -czf ckpt/run.tar.gz --exclude='*-3*' run
    cp -a ckpt/run ckpt/copied
    cp -al ckpt/run ckpt/linked
    cp --sparse=always ckpt/run/sparse ckpt/thin
    mkdir ckpt/unpacked
    tar -C ckpt/unpacked -xpf ckpt/run.tar
    show
}
restart() {
    show
    mv ckpt/copied ckpt/moved
    mv ckpt/moved/fields/field-1? ckpt/moved
    mv -n ckpt/moved/field-10 ckpt/moved/field-11
    cp -u ckpt/run/fields/field-20 ckpt/moved/field-11
    cp --backup=numbered ckpt/run/fields/field-21 ckpt/moved/field-12
    install -m 600 -D ckpt/run/fields/field-22 ckpt/new/below/installed
    rm -r ckpt/linked
    rm -rf ckpt/unpacked/run/fields
    find ckpt/moved -name '*-2*' -delete
    touch -d '2021-02-02T02:02:02Z' ckpt/moved/field-12
    tar -C ckpt -rf ckpt/run.tar moved/field-12
    tar -C ckpt -xf ckpt/run.tar.gz --one-top-level=again run/fields
    split -n 3 ckpt/run.tar ckpt/part-
    cat ckpt/part-a? | cmp - ckpt/run.tar && rm ckpt/part-*
    dd if=ckpt/run.tar of=ckpt/run/sparse bs=512 seek=100 count=3 conv=notrunc status=none
    sort -n -o ckpt/run/fields/field-4 ckpt/run/fields/field-5
    sed -i 's/^1/one/' ckpt/run/fields/field-6
    shred -n 1 -u ckpt/run/fields/field-7
    ls -1 ckpt/moved >ckpt/list
    rmdir ckpt/run/fields/deep || echo "not empty"
    rm -r ckpt/run/fields/deep
    comm -13 <(listed ckpt/run) <(listed ckpt/moved) | wc -l
    show
}
show() {
    listed ckpt
    sized ckpt
    du --apparent-size -b ckpt/run/fields/field-* ckpt/run.tar | sort -k 2
    tar -tf ckpt/run.tar | sort
    tar -C ckpt -df ckpt/run.tar 2>&1 | sort
    stat -c '%n %s %h %F %a' ckpt/run/* ckpt/*.tar
    ls -lR --time-style=+ ckpt/run | sed 's/^total .*//; /^d/d'
    cmp ckpt/run/fields/field-1 ckpt/run/hard
    test ckpt/run/hard -ef ckpt/run/fields/field-1 && echo "one file"
}
"$1"
