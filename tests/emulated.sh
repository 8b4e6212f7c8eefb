#!/usr/bin/env bash
# The kernels' tests as other processors run them: without wide units (the portable path) and with AVX2. Needs QEMU's user emulation
# (qemu-x86_64; in Debian the package qemu-user) on an x86-64 Linux. QEMU emulates neither AVX-512 nor tiles: those paths are tested on
# machines that have them.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=$(cargo test -p onnx-graft-kernels --lib --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
for cpu in Nehalem Haswell; do
    echo "== $cpu"
    qemu-x86_64 -cpu "$cpu" "$tests" --test-threads 2 2>/dev/null | tail -n 2
done
