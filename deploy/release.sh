#!/usr/bin/env bash
# release.sh: wheel and source distribution of the version in mloc_dagster/__init__.py, with checksums, in dist/.
# Refuses a version that CHANGELOG.md does not tell of. PYTHON: one that has the package build.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "release.sh: $1" >&2; exit 2; }

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' mloc_dagster/__init__.py)
[ -n "$version" ] || fail "mloc_dagster/__init__.py names no __version__"
grep -q "^## \[$version\]" CHANGELOG.md || grep -q '^## \[Unreleased\]' CHANGELOG.md \
  || fail "CHANGELOG.md has no section [$version]; write one: ## [$version] - $(date -u +%F)"
if [ "${1:-}" = --final ]; then
  grep -q "^## \[$version\] - [0-9-]*$" CHANGELOG.md || fail "CHANGELOG.md has no section ## [$version] - $(date -u +%F)"
  [ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed; commit them first"
fi
for place in deploy/helm/mloc/Chart.yaml; do
  grep -q "^appVersion: $version$" "$place" || fail "$place is of another version than $version"
done

rm -rf dist
"${PYTHON:-python3}" -m build --outdir dist .
(cd dist && sha256sum -- *.whl *.tar.gz > SHA256SUMS)
ls dist
