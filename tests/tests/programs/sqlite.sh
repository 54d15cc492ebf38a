# A database with a rollback journal and one with a write-ahead log, each also left by a killed process. Argument: write | restart
set -eu
export SQLITE_HISTORY=/dev/null
sql() { sqlite3 -init /dev/null -batch "$@" 2>&1; }
# Dies in the middle of a transaction that has reached the file: a small cache spills.
killed() {
    sql "$1" "PRAGMA cache_size=5; $2" "BEGIN; UPDATE t SET b = b || 'lost';" ".system kill -9 \$PPID" || echo "killed"
}
write() {
    sql ckpt/rollback.db "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);"
    sql ckpt/log.db "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);"
    for database in rollback log; do
        for round in 1 2 3; do
            sql "ckpt/$database.db" "BEGIN;
                WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<2000)
                INSERT INTO t(b) SELECT 'row ' || x || ' of $round' FROM n; COMMIT;
                BEGIN; DELETE FROM t; ROLLBACK;"
        done
        sql "ckpt/$database.db" "CREATE INDEX i ON t(b); DELETE FROM t WHERE a % 7 = 0;"
        killed "ckpt/$database.db" ""
    done
    cp ckpt/log.db ckpt/only.db
    show
}
restart() {
    show
    sql ckpt/rollback.db "UPDATE t SET b = b || '.' WHERE a % 3 = 0; VACUUM;"
    sql ckpt/log.db "INSERT INTO t(b) SELECT b FROM t; PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM t WHERE a % 2;"
    sql ckpt/rollback.db "ATTACH 'ckpt/log.db' AS l; INSERT INTO l.t(b) SELECT b FROM t LIMIT 100;"
    sql ckpt/rollback.db ".backup ckpt/backup.db"
    sql ckpt/log.db "VACUUM INTO 'ckpt/into.db';"
    sql ckpt/log.db ".dump" | sha256sum
    sql ckpt/log.db "PRAGMA journal_mode=DELETE;"
    for mode in PERSIST TRUNCATE MEMORY; do
        sql ckpt/backup.db "PRAGMA journal_mode=$mode; UPDATE t SET b = '$mode' WHERE a < 50;"
    done
    show
    sql ckpt/backup.db "PRAGMA integrity_check;"
}
show() {
    for database in rollback log; do
        sql "ckpt/$database.db" "PRAGMA integrity_check; SELECT count(*), sum(length(b)), max(a) FROM t;"
    done
}
"$1"
