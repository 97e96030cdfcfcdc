#!/usr/bin/env bash
# backup.sh HOME FOLDER [--with-cache]: all state of a deployment, while it runs.
#
# Makes FOLDER/mloc-<time>/ with the database (of DATABASE_URL, else the SQLite files of the home), the home's folders and
# their checksums. The database comes first: what ends between both is found finished, or done again, never lost.
# Pulled models and data (cache/) are left out unless they are asked for. Holds tokens and task files: keep it private.
# PG_DUMP: how to call pg_dump, as in "docker-compose exec -T postgres pg_dump".
set -euo pipefail

fail() { echo "backup.sh: $1" >&2; exit 2; }

[ $# -ge 2 ] || fail "which home, and where to? backup.sh HOME FOLDER [--with-cache]"
home=$1 folder=$2 cache=${3:-}
[ -d "$home/dagster" ] || fail "$home is no home: it has no folder dagster; write the folder that MLOC_HOME names"
[ -z "$cache" ] || [ "$cache" = --with-cache ] || fail "what is $cache? there is --with-cache"

umask 077
mkdir -p "$folder"
target=$folder/mloc-$(date -u +%Y%m%dT%H%M%SZ)
part=$target.part
[ ! -e "$target" ] || fail "$target is there already; wait a second"
mkdir "$part"
trap 'rm -rf "$part"' EXIT

if [ -n "${DATABASE_URL:-}" ]; then
  ${PG_DUMP:-pg_dump} --format=custom --no-owner --no-privileges --dbname "${DATABASE_URL/+psycopg2/}" \
    > "$part/database.dump"
else
  python3 - "$home" "$part/sqlite" > "$part/excluded" <<'PYTHON'
import pathlib, sqlite3, sys
home, target = map(pathlib.Path, sys.argv[1:])
for file in home.rglob("*.db"):
    if file.relative_to(home).parts[0] in ("cache", "results", "work"):
        continue
    copy = target / file.relative_to(home)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as source, sqlite3.connect(copy) as written:
        source.backup(written)
    print(*(f"./{file.relative_to(home)}{end}" for end in ("", "-wal", "-shm", "-journal")), sep="\n")
PYTHON
  tar -C "$part" -cf "$part/sqlite.tar" sqlite
fi

# Sockets, pipes and locks are of processes, databases are above.
excluded=(--exclude=./pool --exclude='*.sock' --exclude='*.fifo' --exclude='*.lock' --exclude=./dagster/.lock)
[ ! -f "$part/excluded" ] || excluded+=(--exclude-from="$part/excluded")
[ -n "$cache" ] || excluded+=(--exclude=./cache)
ended=0
tar -C "$home" "${excluded[@]}" --warning=no-file-changed --warning=no-file-removed -czf "$part/home.tar.gz" . || ended=$?
[ "$ended" -le 1 ] || fail "tar ended with $ended"  # 1: a file grew meanwhile, as logs do

rm -rf "$part/sqlite" "$part/excluded"
(cd "$part" && sha256sum -- * > SHA256SUMS)
mv "$part" "$target"
trap - EXIT
echo "$target"
