# Mirrors a directory into the checkpoint directory. Argument: write | restart
# Times of directories are left out: the store lies in one of them.
set -eu
case $1 in
    write) exec rsync -aO source/ ckpt/ ;;
    restart)
        # Same sizes and times: nothing is sent again.
        rsync -aOi source/ ckpt/
        rsync -aO ckpt/ out/
        rm out/two
        exec rsync -aOi --delete out/ ckpt/
        ;;
esac
