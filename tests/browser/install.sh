#!/usr/bin/env bash
# Browser tests need a Chromium: the one that is there, else Debian's when this is root.
set -u
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
    || echo "Chromium could not be installed; the browser tests will be skipped"
else
  echo "no Chromium here; the browser tests will be skipped (install the package chromium)"
fi
exit 0
