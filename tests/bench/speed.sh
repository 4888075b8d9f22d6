#!/bin/sh
# Calibration speed over stock llama.cpp's prompt processing: same file, threads and number of windows, the two taking turns, so
# that a machine that is busy with other things is as busy for both.
#
#     speed.sh PROGRAM MODEL [WINDOWS] [ROUNDS]         speed.sh target/release/gguf-shorten model.gguf 16 5
#
# Environment: STOCK_LIB, LLAMA_INCLUDE, PYTHON, CC as for tests/stock/oracle.sh
#              THREADS (2), WINDOW (512), and CONVERT for --convert
#
# A round is a calibration of WINDOWS windows, what is set up for it included, and as many windows in stock llama.cpp, which has
# loaded the model and evaluated one before. Prints the tokens/s of each and the median of the ratios. A measurement, not a test:
# always exits 0 if all ran.
set -eu

[ $# -ge 2 ] && [ -n "${STOCK_LIB:-}" ] && [ -n "${LLAMA_INCLUDE:-}" ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$0")/../stock
program=$1 model=$2 windows=${3:-16} rounds=${4:-5}
threads=${THREADS:-2} window=${WINDOW:-512} python=${PYTHON:-python3}
text=$here/../../testdata/calibration.txt

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
. "$here/build.sh"
build_logits "$work/logits"

"$python" - "$windows" "$window" "$rounds" \
    "$program" score "$model" --calibration "$text" --tokens $((windows * window)) --window "$window" --threads "$threads" \
    --no-cache --quiet --json - ${CONVERT:+--convert "$CONVERT"} -- \
    "$work/logits" --threads "$threads" --text "$text" --speed "$model" "$window" $((windows * rounds + 1)) <<'END'
import json, statistics, subprocess, sys, time

n_windows, window, rounds = (int(arg) for arg in sys.argv[1:4])
split = sys.argv.index("--")
stock = subprocess.Popen(
    sys.argv[split + 1 :], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
)


def one_window():
    stock.stdin.write("\n")
    stock.stdin.flush()
    return float(stock.stdout.readline())


def ours():
    result = subprocess.run(sys.argv[4:split], check=True, stdout=subprocess.PIPE, text=True).stdout
    calibration = json.loads(result[result.index("{") :])["calibration"]
    return calibration["tokens"] / calibration["seconds"], calibration["conversion"]


def theirs():
    return n_windows * window / sum(one_window() for _ in range(n_windows))


one_window()
ratios = []
for i in range(rounds):
    # Who goes first changes. ggml's threads look for work for a while after the last: they must not do so in the other's turn.
    if i % 2 == 0:
        (a, conversion), _, b = ours(), time.sleep(1.5), theirs()
    else:
        b, _, (a, conversion) = theirs(), time.sleep(1.5), ours()
    time.sleep(1.5)
    ratios.append(a / b)
    print(f"round {i}: calibration {a:7.1f} tokens/s ({conversion})   stock prompt {b:7.1f} tokens/s   ratio {a / b:.3f}")
print(f"{rounds} rounds of {n_windows} windows: median of the ratios {statistics.median(ratios):.3f}")
stock.stdin.close()
END
