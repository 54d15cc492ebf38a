# A repository in a checkpoint directory. Argument: write | restart
set -eu
# One thread, so that packs are the same bytes: in a file, because options on the command line do not reach the other side
# of a clone.
printf '[pack]\n\tthreads = 1\n' >gitconfig
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=$PWD/gitconfig GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
    GIT_COMMITTER_EMAIL=a@b GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
# No reflogs, which name the absolute path that was cloned; no daemon.
git() {
    command git -c core.logAllRefUpdates=false -c gc.auto=0 -c maintenance.auto=false \
        -c safe.directory='*' -c advice.detachedHead=false "$@"
}
write() {
    git init -q -b main ckpt/work
    for number in $(seq 30); do
        mkdir -p "ckpt/work/part-$((number % 5))"
        seq "$number" $((number * 40)) >"ckpt/work/part-$((number % 5))/file-$number"
        git -C ckpt/work add -A
        git -C ckpt/work commit -q -m "file $number"
    done
    git -C ckpt/work checkout -q -b side HEAD~10
    echo side >ckpt/work/side
    git -C ckpt/work add side
    git -C ckpt/work commit -q -m side
    git -C ckpt/work checkout -q main
    git -C ckpt/work merge -q --no-edit side
    git -C ckpt/work tag -a -m one v1
    git clone -q ckpt/work ckpt/clone
    git -C ckpt/clone remote set-url origin ../work
    git clone -q --bare --no-local ckpt/work ckpt/bare.git
    git -C ckpt/bare.git remote set-url origin ../work
    git -C ckpt/work gc -q --prune=now
    show
}
restart() {
    show
    git -C ckpt/work mv part-1 moved
    git -C ckpt/work rm -q -r part-2
    echo changed >>ckpt/work/moved/file-1
    git -C ckpt/work add -A
    git -C ckpt/work status --porcelain
    git -C ckpt/work commit -q -m second
    git -C ckpt/clone pull -q --ff-only
    git -C ckpt/clone push -q ../bare.git main
    git -C ckpt/work stash list
    git -C ckpt/clone reset -q --hard v1
    git -C ckpt/clone clean -q -f -d -x
    git -C ckpt/clone repack -q -a -d
    git -C ckpt/bare.git gc -q --prune=now
    git -C ckpt/work worktree list --porcelain | grep branch
    show
}
show() {
    for repository in ckpt/work ckpt/clone ckpt/bare.git; do
        git -C "$repository" fsck --full --strict 2>&1
        git -C "$repository" log --oneline --stat main | sha256sum
    done
    git -C ckpt/work status --porcelain
    git -C ckpt/clone status --porcelain
    git -C ckpt/work ls-files -s | sha256sum
}
"$1"
