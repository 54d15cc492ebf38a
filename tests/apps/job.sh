# What job scripts do to checkpoints. Argument: write | restart
set -eu
write() {
    echo "started" >ckpt/log
    for step in 1 2 3; do
        seq 1 $((step * 4000)) >ckpt/state.new
        [ ! -e ckpt/state ] || mv ckpt/state ckpt/state.old
        mv ckpt/state.new ckpt/state
        echo "step $step" >>ckpt/log
    done
    mkdir -p ckpt/keep/deep
    cp -p ckpt/state ckpt/keep/state-3
    cp ckpt/log ckpt/keep/deep/
    ln -s keep/state-3 ckpt/best
    ln ckpt/log ckpt/log.link
    printf 'one\ntwo\n' | tee ckpt/tee.txt >/dev/null
    head -c 300000 /dev/zero | tr '\0' 'x' >ckpt/keep/big
    tar -C ckpt --sort=name --mtime=@0 -cf ckpt/keep.tar keep
    rm ckpt/state.old
    touch ckpt/touched
    chmod 600 ckpt/touched
    dd if=ckpt/state of=ckpt/keep/part bs=1000 count=5 skip=2 status=none
    truncate -s 12345 ckpt/keep/part
    show
}
restart() {
    show
    test "$(tail -n 1 ckpt/state)" = 12000
    tar -xf ckpt/keep.tar -C ckpt/keep/deep
    cmp ckpt/keep/big ckpt/keep/deep/keep/big
    echo "again" >>ckpt/log.link
    cat ckpt/log
    mv ckpt/keep/deep ckpt/moved
    rm -r ckpt/keep
    sort -r -n ckpt/state -o ckpt/state
    cp ckpt/state outside
    cp outside ckpt/inside
    mv ckpt/log outside
    cat outside >ckpt/log
    mv ckpt/tee.txt left
    cat left
    show
}
show() {
    ls -A ckpt
    find ckpt -type f | sort
    wc -c ckpt/state ckpt/log
    [ -s ckpt/best ] || echo "best is dangling"
    stat -c '%n %s %A' ckpt/*
}
"$1"
