#!/usr/bin/env bash
# Runs the commands of README.md and of docs/*.md, and compares what they print with what the pages show.
#
#   tests/readme.sh                    all pages
#   tests/readme.sh docs/serving.md    one page, or several
#   tests/readme.sh --show PAGE…       prints what the commands print, for whoever writes a page
#
# Each page has an empty folder of its own that sees the fixtures, and its ```sh blocks run there in their order, so that a page can be
# followed alone. Of the ```text block that follows a ```sh block, every line must be printed, except for `…`. Digits are compared as
# well; those of losses may differ by half a percent, which is what processors differ by. What depends on the machine, as speeds do, is a
# `…` in its line. ```console blocks are not run: they need a network, a release build or a file of the reader's.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
[ -x "$target/debug/rewrite" ] || (cd "$root" && cargo build --quiet --bin rewrite)

show=
if [ "${1:-}" = --show ]; then
    show=yes
    shift
fi
cd "$root"
if [ $# -gt 0 ]; then pages=("$@"); else pages=(README.md docs/*.md); fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$target/debug/rewrite" "$work/bin/rewrite"
export PATH="$work/bin:$PATH"

# Whether a line (the first file) is one of the lines of the second, with its numbers.
cat >"$work/printed.awk" <<'AWK'
function skeleton(line) { gsub(number, "#", line); sub(/[[:space:]]+$/, "", line); return line }
function numbers(line, list,    n) {
    n = 0
    while (match(line, number)) {
        list[++n] = substr(line, RSTART, RLENGTH)
        line = substr(line, RSTART + RLENGTH)
    }
    return n
}
BEGIN { number = "(…|[0-9]+([.][0-9]+)?(e-?[0-9]+)?)" }
NR == FNR { loss = ($0 ~ /loss/); n = numbers($0, wanted); form = skeleton($0); next }
skeleton($0) == form {
    numbers($0, found)
    same = 1
    for (i = 1; i <= n && same; i++) {
        if (wanted[i] == "…") continue
        far = wanted[i] - found[i]
        if (far < 0) far = -far
        same = (wanted[i] == found[i]) || (loss && wanted[i] ~ /[.]/ && far <= 0.005 * wanted[i])
    }
    if (same) { hit = 1; exit }
}
END { exit !hit }
AWK

# Runs one block in the folder of its page, and tells what it shows and does not print.
run_block() {
    local page=$1 block=$2 shown=${2%.sh}.text line
    if ! bash -euo pipefail "$block" >out.txt 2>err.txt; then
        printf '%s: a command fails:\n%s\n%s\n' "$page" "$(cat "$block")" "$(cat err.txt)" >&2
        return 1
    fi
    if [ -n "$show" ]; then
        printf '=== %s\n%s\n--- prints\n%s\n' "$page" "$(cat "$block")" "$(cat out.txt)"
        return 0
    fi
    if [ ! -f "$shown" ]; then
        printf '%s: no output is shown for:\n%s\n' "$page" "$(cat "$block")" >&2
        return 1
    fi
    while IFS= read -r line; do
        if [ -z "$line" ] || [ "$line" = "…" ]; then continue; fi
        printf '%s\n' "$line" >line.txt
        if ! awk -f "$work/printed.awk" line.txt out.txt; then
            printf '%s: a line is shown that is not printed:\n  %s\nby:\n%s\n' "$page" "$line" "$(cat "$block")" >&2
            wrong=$((wrong + 1))
        fi
    done <"$shown"
}

count=0
wrong=0
for page in "${pages[@]}"; do
    desk=$work/desk/${page//\//-}
    blocks=$work/blocks/${page//\//-}
    mkdir -p "$desk" "$blocks"
    ln -s "$root/fixtures" "$desk/fixtures"
    awk -v dir="$blocks" '
        /^```sh$/       { n++; fresh = 1; file = sprintf("%s/%02d.sh", dir, n); next }
        /^```text$/     { file = fresh ? sprintf("%s/%02d.text", dir, n) : ""; fresh = 0; next }
        /^```[a-z]/     { fresh = 0 }
        /^```/          { file = ""; next }
        file != ""      { print > file }
    ' "$root/$page"
    cd "$desk"
    for block in "$blocks"/*.sh; do
        [ -f "$block" ] || continue
        # What comes later on a page needs what came before.
        run_block "$page" "$block" || exit 1
        count=$((count + 1))
    done
done
if [ "$wrong" -gt 0 ]; then
    echo "$wrong lines are shown that are not printed; --show PAGE prints what is" >&2
    exit 1
fi
if [ -n "$show" ]; then exit 0; fi
[ $# -gt 0 ] || [ "$count" -ge 20 ] || { echo "only $count blocks of commands found in README.md and docs/" >&2; exit 1; }
echo "$count blocks of commands in ${#pages[@]} pages run and print what is shown"
