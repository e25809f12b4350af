#!/usr/bin/env bash
# Put Debian's etcd and etcdctl under build/etcd, without root and without touching the system.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/etcd
if [ ! -x "$root/usr/bin/etcdctl" ]; then
  apt=$PWD/build/apt-etcd
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$root"
  options=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -qq)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download etcd-server etcd-client)
  for package in "$apt"/*.deb; do dpkg -x "$package" "$root"; done
fi
"$root/usr/bin/etcd" --version | sed -n 1p
