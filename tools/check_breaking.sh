#!/bin/sh
# Fails if the contract breaks a caller of the latest release, or of main where nothing was released yet.
set -eu
cd "$(dirname "$0")/.."
against=$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify --quiet origin/main || git rev-parse HEAD)
if ! git cat-file -e "$against:proto" 2>/dev/null; then
    echo "no earlier contract to compare with"
    exit 0
fi
.venv/bin/buf breaking --against ".git#ref=$against"
