#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment, and tests it there. Where that cannot be done, says why, and is done.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

skip() { printf 'the Python module is not tested: %s\n' "$*"; exit 0; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || skip "there is no Python of version 3.9 or later"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What the machine has is seen, for one without a network.
"$python" -m venv --system-site-packages "$work/venv" >/dev/null 2>&1 || skip "this Python makes no environments (venv)"
bin=$work/venv/bin
[ -d "$bin" ] || bin=$work/venv/Scripts
install() { "$bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 15 "$@"; }
for module in maturin pytest numpy; do
    "$bin/python" -c "import $module" 2>/dev/null || install "$module" 2>"$work/why" ||
        skip "$module is not there and cannot be installed ($(tail -n 1 "$work/why"))"
done
# Types are checked where mypy can be had.
"$bin/python" -c "import mypy" 2>/dev/null || install mypy 2>/dev/null || echo "types are not checked: there is no mypy"

# The profile of the tests, so that most of it is built already.
PYTHON="$bin/python" PROFILE=${PROFILE:-dev} "$root/python/build.sh" "$work/wheels"
install --no-deps --force-reinstall "$work"/wheels/*.whl
cd "$work"
"$bin/python" -m pytest -q -p no:cacheprovider "$root/python/tests"
