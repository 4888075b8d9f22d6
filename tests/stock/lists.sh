#!/bin/sh
# Which architectures a stock llama.cpp reads lists for that say block by block what else goes by a period: sliding
# windows, recurrent blocks.
#
#     lists.sh GGUF_SHORTEN RANDOM_MODELS [ARCHITECTURE...]
#
# RANDOM_MODELS is the example of that name (cargo build --release --example random_models); it makes a small model of
# random weights for each architecture. Twice some blocks are removed, and the logits compared with those of the model
# with these blocks zeroed, as oracle.sh does it: blocks whose removal shifts the pattern, which only a list can make up
# for; and, with --portable, a whole period, which needs no list. Environment: as for oracle.sh.
#
# One line per architecture, its name and two words: what becomes of a file with a list, and of a portable one.
#     exact      no float differs
#     other      the file loads and computes something else
#     fails      the file does not load, or evaluation fails
#     unneeded   no set may be removed that shifts the pattern
#     unseen     the model gives no logits
#     unknown    the model itself cannot be evaluated: nothing is known
# Exit status: 0 every architecture was tried, 1 a step failed, 2 wrong arguments.
set -u

if [ $# -lt 2 ] || [ -z "${STOCK_LIB:-}" ] || [ -z "${LLAMA_INCLUDE:-}" ]; then
    sed -n '2,22s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "$0")
shorten=$1 random=$2
shift 2
only=" $* "

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

. "$here/build.sh"
build_logits "$work/logits" || exit 1
mkdir "$work/models" && "$random" "$work/models" >"$work/list" || exit 1

# More tokens than the models' sliding window of 24.
logits() {
    timeout 300 "$work/logits" --threads 1 --compare "$1" "$2" "${TOKENS:-72}" 2>>"$work/log"
}

# compare ARCHITECTURE ARGUMENTS...: one of the words.
compare() {
    model=$work/models/$1.gguf
    shift
    rm -f "$work/short.gguf" "$work/zero.gguf"
    removed=$("$shorten" "$model" "$@" -q -o "$work/short.gguf" --json - 2>>"$work/log" |
        "${PYTHON:-python3}" -c 'import json, sys; print(*json.load(sys.stdin)["removed"], sep=",")') &&
        "${PYTHON:-python3}" "$here/zero.py" "$model" "$work/zero.gguf" "$removed" 2>>"$work/log" ||
        { echo "no_file"; return; }
    # A model without an output head gives the same whatever is done to it.
    logits "$model" "$work/zero.gguf" >>"$work/log" && { echo unseen; return; }
    logits "$work/short.gguf" "$work/zero.gguf" >>"$work/log"
    case $? in
        0) echo exact ;;
        3) echo other ;;
        *) echo fails ;;
    esac
}

failed=0
while read -r name period; do
    case $only in "  " | *" $name "*) ;; *) continue ;; esac
    : >"$work/log"
    if ! logits "$work/models/$name.gguf" "$work/models/$name.gguf" >/dev/null; then
        listed=unknown portable=unknown
    else
        # Where the program text ties another kind to the same period, block 1 cannot go alone.
        if "$shorten" "$work/models/$name.gguf" --blocks 1 --dry-run >/dev/null 2>&1; then
            listed=$(compare "$name" --blocks 1)
        else
            listed=unneeded
        fi
        portable=$(compare "$name" --portable --drop "$period" --method reverse)
    fi
    case "$listed $portable" in *no_file*) failed=1 ;; esac
    printf '%-16s %-8s %s\n' "$name" "$listed" "$portable"
    [ -z "${VERBOSE:-}" ] || cat "$work/log" >&2
done <"$work/list"
exit $failed
