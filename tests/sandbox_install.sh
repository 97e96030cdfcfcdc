#!/usr/bin/env bash
# Agents' code runs in a sandbox: bubblewrap where it is there, else Debian's when this is root, else plain namespaces.
set -u
command -v bwrap >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap >/dev/null \
    || echo "bubblewrap could not be installed; its tests will be skipped"
else
  echo "no bubblewrap here; its tests will be skipped (install the package bubblewrap)"
fi
exit 0
