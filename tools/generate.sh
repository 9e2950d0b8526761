#!/bin/sh
# Writes generated/ anew from proto/. Offline: buf and the plugins come from the virtual environment.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
rm -rf generated/orderflow
buf generate
# mypy-protobuf writes a service stub for files without services too.
for stub in $(find generated/orderflow -name '*_pb2_grpc.pyi'); do
    [ -e "${stub%i}" ] || rm "$stub"
done
touch generated/orderflow/py.typed
