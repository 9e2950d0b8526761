#!/bin/sh
# Fails if generated/ is not what proto/ generates, byte for byte.
set -eu
cd "$(dirname "$0")/.."
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
cp -R generated/orderflow "$before/orderflow"
sh tools/generate.sh
find generated -name __pycache__ -prune -exec rm -rf {} +
find "$before" -name __pycache__ -prune -exec rm -rf {} +
if ! diff -r "$before/orderflow" generated/orderflow; then
    echo "generated/ was not what proto/ generates; it is now: commit it" >&2
    exit 1
fi
