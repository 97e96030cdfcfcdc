#!/usr/bin/env bash
# restore.sh BACKUP HOME: what backup.sh made, into an empty home and, with DATABASE_URL, an empty database.
#
# Start the daemon after it, on the same version or a later one: finished tasks are listed, those that waited run, and
# those that ran go on in another attempt. The old deployment must not run any more: both would do the same work.
# PG_RESTORE and PSQL: how to call these programs.
set -euo pipefail

fail() { echo "restore.sh: $1" >&2; exit 2; }

[ $# -eq 2 ] || fail "which backup, and into which home? restore.sh BACKUP HOME"
backup=$1 home=$2
[ -f "$backup/SHA256SUMS" ] || fail "$backup is no backup: it has no SHA256SUMS"
[ -z "$(ls -A "$home" 2>/dev/null)" ] || fail "$home is not empty; restore into a new folder, so that nothing is mixed"
(cd "$backup" && sha256sum --quiet --check SHA256SUMS) || fail "$backup is damaged; take another one"

umask 077
if [ -f "$backup/database.dump" ]; then
  [ -n "${DATABASE_URL:-}" ] || fail "$backup has a PostgreSQL database; set DATABASE_URL to an empty one"
  url=${DATABASE_URL/+psycopg2/}
  there=$(${PSQL:-psql} -XtAc "select count(*) from information_schema.tables where table_schema = 'public'" "$url")
  [ "$there" = 0 ] || fail "the database of DATABASE_URL has $there tables; make an empty one: createdb"
  ${PG_RESTORE:-pg_restore} --no-owner --no-privileges --exit-on-error --single-transaction --dbname "$url" \
    < "$backup/database.dump"
elif [ -n "${DATABASE_URL:-}" ]; then
  fail "$backup has SQLite files, and DATABASE_URL is set; unset it"
fi

mkdir -p "$home"
tar -C "$home" -xzf "$backup/home.tar.gz"
[ ! -f "$backup/sqlite.tar" ] || tar -C "$home" --strip-components=1 -xf "$backup/sqlite.tar"
echo "$home is restored; start the daemon, and mloc list shows its tasks"
