#!/usr/bin/env bash
# install_debian.sh PROGRAM PACKAGE: what some tests need, from Debian when this is root and the program is not there.
set -u
command -v "$1" >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null \
    || echo "$2 could not be installed; its tests will be skipped"
else
  echo "no $1 here; its tests will be skipped (install the package $2)"
fi
exit 0
