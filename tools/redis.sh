#!/usr/bin/env bash
# Put Debian's redis-server under build/redis, without root and without touching the system.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/redis
if [ ! -x "$root/usr/bin/redis-check-rdb" ]; then
  apt=$PWD/build/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$root"
  options=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -qq)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download redis-server redis-tools libjemalloc2 liblua5.1-0 liblzf1 libhiredis0.14 lua-bitop lua-cjson libatomic1)
  for package in "$apt"/*.deb; do dpkg -x "$package" "$root"; done
fi
libraries=$(find "$root/usr/lib" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
LD_LIBRARY_PATH=$libraries "$root/usr/bin/redis-check-rdb" --version
