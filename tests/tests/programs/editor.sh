# How vim saves: swap file, backup, rename or overwrite. Argument: write | restart
set -eu
edit() { vim -N -u NONE -i NONE -n -es -c "$1" -c "%s/one/two/e" -c "\$put ='$2'" -c "wq" "$3" </dev/null; }
swap() { vim -N -u NONE -i NONE -es -c "set swapfile directory=. updatecount=1" -c "\$put ='$1'" -c "preserve" -c "wq" "$2" </dev/null; }
write() {
    for name in renamed copied linked plain; do seq 2000 | sed s/1/one/ >"ckpt/$name"; done
    ln ckpt/linked ckpt/second
    ln -s plain ckpt/symbolic
    restart
}
restart() {
    edit "set backup backupcopy=no" renamed ckpt/renamed
    edit "set backup backupcopy=yes" copied ckpt/copied
    edit "set nobackup writebackup backupcopy=auto,breakhardlink" linked ckpt/linked
    edit "set nowritebackup" symbolic ckpt/symbolic
    swap swapped ckpt/plain
    ( cd ckpt && swap inside renamed )
    edit "set backup" new ckpt/made || echo "vim: $?"
    ls -A ckpt
    tail -q -n 1 ckpt/* | cat -A
    stat -c '%n %h %F %s' ckpt/*
}
"$1"
