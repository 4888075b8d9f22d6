#!/bin/sh
# Calibration speed over stock llama.cpp's prompt processing: same file, threads and window, runs taking turns.
#
#     speed.sh GGUF_SHORTEN MODEL [RUNS]         speed.sh target/release/gguf-shorten model.gguf 5
#
# Environment: STOCK_LIB, LLAMA_INCLUDE, PYTHON, CC as for tests/stock/oracle.sh
#              THREADS (2), WINDOW (512), WINDOWS (8)
#
# Both evaluate the same number of windows and time them from the first to the last, without loading the model. Prints
# tokens/s of each run and the median of the paired ratios. A measurement, not a test: always exits 0 if all ran.
set -eu

[ $# -ge 2 ] && [ -n "${STOCK_LIB:-}" ] && [ -n "${LLAMA_INCLUDE:-}" ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$0")/../stock
shorten=$1 model=$2 runs=${3:-5}
threads=${THREADS:-2} window=${WINDOW:-512} windows=${WINDOWS:-8} python=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
. "$here/build.sh"
build_logits "$work/logits"

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    "$shorten" score "$model" -q --threads "$threads" --window "$window" --tokens $((window * windows)) --json "$work/score.json" >/dev/null
    ours=$("$python" -c 'import json, sys; c = json.load(open(sys.argv[1]))["calibration"]; print(c["tokens"] / c["seconds"])' "$work/score.json")
    stock=$("$work/logits" --threads "$threads" --speed "$model" "$window" "$windows")
    echo "$ours $stock" >>"$work/pairs"
done
"$python" - "$work/pairs" <<'END'
import statistics, sys
pairs = [tuple(map(float, line.split())) for line in open(sys.argv[1])]
for ours, stock in pairs:
    print(f"calibration {ours:7.1f} tokens/s   stock prompt {stock:7.1f} tokens/s   ratio {ours / stock:.3f}")
print(f"median of {len(pairs)} paired ratios: {statistics.median(ours / stock for ours, stock in pairs):.3f}")
END
