#!/bin/sh
# Resolves requirements/*.in for every platform and Python that we support, with hashes.
set -eu
cd "$(dirname "$0")/../requirements"
for name in runtime dev build; do
    ../.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        "$name.in" -o "$name.txt"
done
