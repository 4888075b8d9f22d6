#!/bin/sh
# The zero oracle: a shortened model and its parent with those blocks zeroed give the same logits in a stock llama.cpp.
#
#     oracle.sh GGUF_SHORTEN MODEL SET...        oracle.sh target/release/gguf-shorten model.gguf 3 7,12 20-24
#
# A set may name blocks that lose only their attention, after a slash: 3/7,12 or /7,12.
#
# Environment: STOCK_LIB      folder of a libllama that this project did not build, with its ggml libraries
#              LLAMA_INCLUDE  folder of a llama.h that fits it, with ggml.h beside it or in ../ggml/include
#              TOKENS         tokens evaluated at once (700: longer than the usual sliding window of 512)
#              THREADS        threads to evaluate with (1)
#              PYTHON, CC     python with the package gguf (python3), C compiler (cc)
#
# One line per set, then a total. Exit status: 0 no float differs, 1 one does or a step failed, 2 wrong arguments.
set -u

if [ $# -lt 3 ] || [ -z "${STOCK_LIB:-}" ] || [ -z "${LLAMA_INCLUDE:-}" ]; then
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "$0")
shorten=$1 model=$2
shift 2

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

. "$here/build.sh"
build_logits "$work/logits" || exit 1

# Prints 'floats F differ D max_abs M' for one set. The two models lie in $work only as long as they are compared.
compare() {
    blocks=${1%%/*}
    attention=${1#"$blocks"}
    attention=${attention#/}
    "$shorten" "$model" ${blocks:+--blocks "$blocks"} ${attention:+--attention-blocks "$attention"} \
        -o "$work/short.gguf" >"$work/log" 2>&1 &&
        "${PYTHON:-python3}" "$here/zero.py" "$model" "$work/zero.gguf" "$blocks" "$attention" 2>"$work/log" ||
        { cat "$work/log" >&2; return 1; }
    "$work/logits" --threads "${THREADS:-1}" --compare "$work/short.gguf" "$work/zero.gguf" "${TOKENS:-700}"
}

sets=0 failed=0 floats=0 differ=0
for set in "$@"; do
    sets=$((sets + 1))
    line=$(compare "$set")
    status=$?
    rm -f "$work/short.gguf" "$work/zero.gguf"
    if [ $status -ne 0 ] && [ $status -ne 3 ]; then
        failed=$((failed + 1))
        echo "blocks $set: failed"
        continue
    fi
    echo "blocks $set: $line"
    # The words of the line are: floats F differ D max_abs M.
    floats=$((floats + $(echo "$line" | cut -d' ' -f2)))
    differ=$((differ + $(echo "$line" | cut -d' ' -f4)))
done
echo "total: sets $sets failed $failed floats $floats differ $differ"
[ "$failed" -eq 0 ] && [ "$differ" -eq 0 ]
