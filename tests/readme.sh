#!/usr/bin/env bash
# Runs the commands of README.md, in its order, and compares what they print with what it shows.
#
# Every ```sh block is run (but for those that call cargo test), in an empty folder that sees the fixtures. Of the ```text block that
# follows, every line must be printed, except for `…`. Digits are compared as well: those of losses may differ by half a percent, which
# is what processors differ by; speeds and differences between engines depend on the machine, and are not compared.
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

# Whether a line (the first file) is one of the lines of the second, with its numbers.
cat >"$work/printed.awk" <<'AWK'
function skeleton(line) { gsub(number, "#", line); sub(/[[:space:]]+$/, "", line); return line }
function numbers(line, list,    n) {
    n = 0
    while (match(line, number)) {
        # A number is free in front of its unit of speed, and in lines of differences.
        rest = substr(line, RSTART + RLENGTH)
        list[++n] = (rest ~ /^ tokens\/s/ || line ~ /[|]Δ[|]/) ? "free" : substr(line, RSTART, RLENGTH)
        line = rest
    }
    return n
}
BEGIN { number = "[0-9]+([.][0-9]+)?(e-?[0-9]+)?" }
NR == FNR { want = $0; delta = ($0 ~ /[|]Δ[|]/); loss = ($0 ~ /loss/); n = numbers($0, wanted); form = skeleton($0); next }
skeleton($0) == form {
    numbers($0, found)
    same = 1
    for (i = 1; i <= n && same; i++) {
        if (delta || wanted[i] == "free") continue
        far = wanted[i] - found[i]
        if (far < 0) far = -far
        same = (wanted[i] == found[i]) || (loss && wanted[i] ~ /[.]/ && far <= 0.005 * wanted[i])
    }
    if (same) { hit = 1; exit }
}
END { exit !hit }
AWK

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
    while IFS= read -r line; do
        if [ -z "$line" ] || [ "$line" = "…" ]; then continue; fi
        printf '%s\n' "$line" >line.txt
        if ! awk -f "$work/printed.awk" line.txt out.txt; then
            printf 'the README shows a line that is not printed:\n  %s\nby:\n%s\n' "$line" "$(cat "$block")" >&2
            exit 1
        fi
    done <"$shown"
    count=$((count + 1))
done
[ "$count" -ge 6 ] || { echo "only $count blocks of commands found in the README" >&2; exit 1; }
echo "$count blocks of the README's commands run and print what it shows"
