# stress-ng's file system stressors, each with a bound on its operations and its own checks. Argument: write | restart
set -eu
# Each line: the stressor and how many operations. Not symlink: an operation is 8192 links, and natively takes half a minute
# on a busy disk; tests/conformance/links.rs makes as many.
while read -r stressor operations; do
    status=0
    stress-ng --quiet --verify --oomable --temp-path ckpt --timeout 20 "--$stressor" 1 "--$stressor-ops" "$operations" \
        >stress.log 2>&1 || status=$?
    echo "$stressor $status"
    grep -v -e 'info:' -e 'metrc:' stress.log | sed 's/\[[0-9]*\]//' || true
done <<'END'
access 200
chmod 200
chown 200
copy-file 50
dentry 3000
dir 500
dirdeep 100
flock 1000
fstat 500
getdent 200
hdd 400
link 1
msync 50
open 500
rename 1000
seek 2000
sendfile 50
touch 300
END
find ckpt -path ckpt/.sheaf -prune -o -print
echo "$1" >>ckpt/done
