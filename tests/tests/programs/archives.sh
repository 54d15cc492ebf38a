# zip and unzip, gzip, bzip2 and xz, which all write to a temporary name and rename. Argument: write | restart
set -eu
write() {
    mkdir -p ckpt/files/sub
    for number in $(seq 12); do seq "$number" $((number * 300)) >"ckpt/files/sub/$number"; done
    find ckpt/files -exec touch -d '2020-02-02T02:02:02Z' {} +
    ( cd ckpt && find files | sort | zip -q -X all.zip -@ && zip -q -X -d all.zip 'files/sub/3' )
    unzip -q ckpt/all.zip -d ckpt/out
    gzip -n -k ckpt/files/sub/4
    bzip2 -k ckpt/files/sub/5
    xz -k ckpt/files/sub/6
    show
}
restart() {
    show
    echo new >ckpt/files/sub/1
    touch -d '2021-02-02T02:02:02Z' ckpt/files/sub/1
    ( cd ckpt && zip -q -X -u all.zip files/sub/1 && zip -q -X -m all.zip files/sub/7 )
    unzip -q -o ckpt/all.zip -d ckpt/out
    gunzip -f ckpt/files/sub/4.gz
    bunzip2 -f ckpt/files/sub/5.bz2
    unxz -f ckpt/files/sub/6.xz
    show
}
show() {
    unzip -t ckpt/all.zip
    unzip -Z1 ckpt/all.zip | sort
    find ckpt/out ckpt/files | sort
}
"$1"
