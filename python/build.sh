#!/usr/bin/env bash
# Builds the wheel of the Python module: python/build.sh [FOLDER] [COMPATIBILITY]. Needs Rust, and Python with maturin or with pip.
#
# The command and the module are compiled together, once, and linked twice: the second call of cargo, maturin's, finds everything built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/target/wheels}
compatibility=${2:-}
python=${PYTHON:-python3}
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"

if ! "$python" -m maturin --version >/dev/null 2>&1; then
    "$python" -m venv "$target/maturin"
    python=$target/maturin/bin/python
    [ -x "$python" ] || python=$target/maturin/Scripts/python.exe
    "$python" -m pip install --quiet 'maturin>=1.9.4,<2'
fi

cargo build --locked --profile "$profile" --package onnx-graft --package onnx-graft-python --bin rewrite --lib

scripts=python/onnx_graft.data/scripts
rm -rf "$scripts"
mkdir -p "$scripts"
folder=$profile
if [ "$profile" = dev ]; then folder=debug; fi
for name in rewrite rewrite.exe; do
    if [ -f "$target/$folder/$name" ]; then cp "$target/$folder/$name" "$scripts/"; fi
done

"$python" -m maturin build --locked --profile "$profile" --manifest-path python/Cargo.toml --out "$out" \
    ${compatibility:+--compatibility "$compatibility"}
