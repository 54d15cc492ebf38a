# stress-ng's file system stressors, each with a bound on its operations and its own checks, a few beside each other.
# Argument: write | restart
set -eu
# Each line: the stressor and how many operations. Not link and symlink: an operation is 8192 links, and takes half a minute
# on a busy disk; tests/conformance/links.rs makes as many.
stress() {
    mkdir -p "ckpt/$1"
    while read -r stressor operations; do
        status=0
        stress-ng --quiet --verify --oomable --temp-path "ckpt/$1" --timeout 20 "--$stressor" 1 \
            "--$stressor-ops" "$operations" >"$1.log" 2>&1 || status=$?
        echo "$stressor $status"
        grep -v -e 'info:' -e 'metrc:' "$1.log" | sed 's/\[[0-9]*\]//' || true
    done >"$1.out"
}
stress attributes <<'END' &
access 200
chmod 200
chown 200
fstat 500
touch 300
flock 1000
END
stress data <<'END' &
copy-file 50
hdd 400
msync 50
open 500
seek 2000
sendfile 50
END
stress names <<'END' &
dentry 1000
dir 500
dirdeep 100
getdent 200
rename 1000
END
wait
cat attributes.out data.out names.out
find ckpt -path ckpt/.sheaf -prune -o -print | sort
echo "$1" >>ckpt/done
