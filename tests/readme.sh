#!/usr/bin/env bash
# Runs the commands of README.md, in its order, and compares what they print with what it shows.
#
# Every ```sh block is run (but for those that call cargo test), in an empty folder that sees the fixtures. Of the ```text block that
# follows, every line must be printed, except for `…`. In lines with losses, speeds or differences, digits are not compared: they
# depend on the machine.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
[ -x "$target/debug/rewrite" ] || (cd "$root" && cargo build --quiet --bin rewrite)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$root/fixtures" "$work/fixtures"
mkdir "$work/bin" "$work/blocks"
ln -s "$target/debug/rewrite" "$work/bin/rewrite"
export PATH="$work/bin:$PATH"

awk -v dir="$work/blocks" '
    /^```sh$/   { n++; file = sprintf("%s/%02d.sh", dir, n); next }
    /^```text$/ { file = sprintf("%s/%02d.text", dir, n); next }
    /^```/      { file = ""; next }
    file != ""  { print > file }
' "$root/README.md"

plain() { sed -E '/loss|tokens\/s|\|Δ\|/ s/[0-9.]+(e-?[0-9]+)?//g; s/[[:space:]]+$//' "$1"; }

count=0
cd "$work"
for block in "$work"/blocks/*.sh; do
    if grep -q '^cargo test' "$block"; then continue; fi
    sed -i.orig -E 's/^cargo run --release -- /rewrite /' "$block"
    if ! bash -euo pipefail "$block" >out.txt 2>err.txt; then
        printf 'a command of the README fails:\n%s\n%s\n' "$(cat "$block")" "$(cat err.txt)" >&2
        exit 1
    fi
    shown=${block%.sh}.text
    [ -f "$shown" ] || { printf 'the README shows no output for:\n%s\n' "$(cat "$block")" >&2; exit 1; }
    plain out.txt >out.plain
    while IFS= read -r line; do
        if [ -z "$line" ] || [ "$line" = "…" ]; then continue; fi
        if ! grep -qxF -- "$line" out.plain; then
            printf 'the README shows a line that is not printed:\n  %s\nby:\n%s\n' "$line" "$(cat "$block")" >&2
            exit 1
        fi
    done < <(plain "$shown")
    count=$((count + 1))
done
[ "$count" -ge 6 ] || { echo "only $count blocks of commands found in the README" >&2; exit 1; }
echo "$count blocks of the README's commands run and print what it shows"
