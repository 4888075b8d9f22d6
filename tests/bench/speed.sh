#!/bin/sh
# Calibration speed over stock llama.cpp's prompt processing: same file, threads and windows, the two taking turns window
# by window, so that a machine that is busy with other things is as busy for both.
#
#     speed.sh PACED MODEL [WINDOWS]         speed.sh target/release/examples/paced model.gguf 16
#
# Environment: STOCK_LIB, LLAMA_INCLUDE, PYTHON, CC as for tests/stock/oracle.sh
#              THREADS (2), WINDOW (512)
#
# PACED is the example of that name. Prints the tokens/s of each window and the ratios: of the sums of all windows, the first
# (which pays for what is set up on first use) included, and the median of the pairs. A measurement, not a test: always
# exits 0 if all ran.
set -eu

[ $# -ge 2 ] && [ -n "${STOCK_LIB:-}" ] && [ -n "${LLAMA_INCLUDE:-}" ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$0")/../stock
paced=$1 model=$2 windows=${3:-16}
threads=${THREADS:-2} window=${WINDOW:-512} python=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
. "$here/build.sh"
build_logits "$work/logits"

"$python" - "$windows" "$window" "$paced" "$model" "$window" "$threads" -- \
    "$work/logits" --threads "$threads" --text "$here/../../testdata/calibration.txt" --speed "$model" "$window" "$windows" <<'END'
import statistics, subprocess, sys, time

n_windows, window = int(sys.argv[1]), int(sys.argv[2])
split = sys.argv.index("--")
ours, stock = (
    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    for command in (sys.argv[3:split], sys.argv[split + 1 :])
)


def turn(program):
    # ggml's threads look for work for a while after the last: they must not do so in the other's turn.
    time.sleep(1.5)
    program.stdin.write("\n")
    program.stdin.flush()
    return float(program.stdout.readline())


pairs = []
for i in range(n_windows):
    # Who goes first changes, so that neither always follows the other.
    first, second = (ours, stock) if i % 2 == 0 else (stock, ours)
    seconds = {first: turn(first), second: turn(second)}
    pairs.append((seconds[ours], seconds[stock]))
    a, b = window / seconds[ours], window / seconds[stock]
    print(f"window {i}: calibration {a:7.1f} tokens/s   stock prompt {b:7.1f} tokens/s   ratio {a / b:.3f}")
total = sum(b for _, b in pairs) / sum(a for a, _ in pairs)
median = statistics.median(b / a for a, b in pairs)
print(f"{n_windows} windows: ratio of all {total:.3f}, median of the pairs {median:.3f}")
for program in (ours, stock):
    program.stdin.close()
END
