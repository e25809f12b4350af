#!/usr/bin/env bash
# Generate the typed stubs from proto/ into a folder (default python). `--check` compares instead of writing.
#
# The generator's version sets the lower bounds of grpcio and protobuf for users, so it lives in an environment of its
# own and is older than what the project itself runs with.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=build/protovenv
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -c tools/proto-constraints.txt grpcio-tools mypy-protobuf
fi
out=python
if [ "${1:-}" = "--check" ]; then out=build/protocheck; rm -rf "$out"; fi
mkdir -p "$out"
protoc() { PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I proto --python_out="$out" --mypy_out="$out" "$@"; }
protoc --grpc_python_out="$out" --mypy_grpc_out="$out" proto/spacegrid/v1/*.proto
# Messages only: the paths of etcd's calls are written by hand beside them.
protoc proto/spacegrid/coordinator/etcd/api.proto
if [ "${1:-}" = "--check" ]; then
  (cd "$out" && find spacegrid -type f | sort) | while read -r stub; do
    diff "$out/$stub" "python/$stub" || { echo "python/$stub does not match proto/: run make proto" >&2; exit 1; }
  done
  echo "stubs match proto/"
fi
