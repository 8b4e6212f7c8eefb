#!/usr/bin/env bash
# Loads the completions of the `rewrite` that is given into real shells, and looks at what they offer: bash, and zsh and fish where they are.
set -euo pipefail
rewrite=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for shell in bash zsh fish; do "$rewrite" completions "$shell" >"$work/$shell"; done
mkdir "$work/desk" "$work/desk/folder"
touch "$work/desk/own.json"
cd "$work/desk"

fail() { printf '%s\n' "$*" >&2; exit 1; }

# What bash offers for a line whose last word is being typed.
offers() {
    bash -c '
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        # Outside of readline, folders are added here.
        compopt() { if [ "$2" = plusdirs ]; then dirs=yes; fi; }
        _rewrite rewrite "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf "%s\n" "${COMPREPLY[@]}"
        if [ -n "${dirs-}" ]; then compgen -d -- "${COMP_WORDS[COMP_CWORD]}"; fi' _ "$work/bash" "$@"
}
has() {
    local want=$1
    shift
    grep -qxF -- "$want" <<<"$(offers "$@")" || fail "bash does not offer \`$want\` for: $*"
}
has qwen3 rewrite train --interface ''
has own.json rewrite train --interface ''
has qwen3 rewrite --interface qw
has lora rewrite train m.onnx --adapter ''
has folder rewrite train m.onnx --adapter ''
has tensorboard rewrite train --report-to ''
has accuracy rewrite eval --metrics ''
has folder rewrite train --output-dir ''
has cosine rewrite train --lr-scheduler-type ''
has qwen3 rewrite interface show ''
has seq_bn rewrite adapter show ''
has man rewrite ma
if grep -qx own.json <<<"$(offers rewrite train --output-dir '')"; then fail "bash offers files for --output-dir"; fi

if command -v zsh >/dev/null 2>&1; then
    zsh -n "$work/zsh" || fail "zsh does not read its script"
fi
if command -v fish >/dev/null 2>&1; then
    fish -n "$work/fish" || fail "fish does not read its script"
    grep -q '^qwen3' <<<"$(fish -c "source $work/fish; complete -C 'rewrite train --interface qw'")" || fail "fish does not offer qwen3"
    grep -q '^own.json' <<<"$(fish -c "source $work/fish; complete -C 'rewrite train --interface ow'")" || fail "fish does not offer own.json"
    grep -q '^tensorboard' <<<"$(fish -c "source $work/fish; complete -C 'rewrite train --report-to te'")" || fail "fish does not offer tensorboard"
fi
echo "completions offer what there is"
