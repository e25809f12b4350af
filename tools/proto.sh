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
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I proto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  proto/spacegrid/v1/*.proto
if [ "${1:-}" = "--check" ]; then
  diff -r -x __pycache__ -x __init__.py "$out/spacegrid/v1" python/spacegrid/v1 ||
    { echo "python/spacegrid/v1 does not match proto/: run make proto" >&2; exit 1; }
  echo "stubs match proto/"
fi
