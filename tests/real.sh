#!/bin/sh
# Checks on a real model, SmolLM2, what the program promises, with tools that share no code with it (tests/stock).
#
#     sh tests/real.sh
#
# Prints a line for each check. The last one is 'real: N passed, N failed, N skipped'; the exit status is 0 if none failed.
# Skipped is only what needs a stock llama.cpp, where npm, which brings it, is missing.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/setup.sh

passed=0 failed=0 skipped=0
mkdir -p "$target" && work=$(mktemp -d "$target/real.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
# Nothing that was measured before.
export GGUF_SHORTEN_CACHE="$work/cache"
trap 'exit 1' HUP INT TERM

# check NAME COMMAND...: what the command prints is shown, indented.
check() {
    name=$1
    shift
    echo "check: $name"
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1)) result=ok
    else
        failed=$((failed + 1)) result=FAILED
    fi
    sed 's/^/    /' "$work/log"
    echo "$result: $name"
}

skip() {
    skipped=$((skipped + 1))
    echo "skipped: $1: $2"
}

# Ends it where going on makes no sense: one more failure.
give_up() {
    echo "FAILED: $1"
    echo "real: $passed passed, $((failed + 1)) failed, $skipped skipped"
    exit 1
}

need_build_tools && need_python_packages && need_smollm2 || give_up "set-up"
cargo build --release --bins --example windows || give_up "build"
program=$target/release/gguf-shorten
examples=$target/release/examples
text=testdata/calibration.txt

shorten() {
    "$program" "$SMOLLM2" --drop 7 --method bi --tokens 2048 -o "$work/short.gguf" --json "$work/short.json"
}

# The blocks that stay, from the JSON.
kept() {
    "$PYTHON" -c '
import json, sys
result = json.load(open(sys.argv[1]))
removed = set(result["removed"])
assert len(removed) == 7 and result["output"]["block_count"] == 23, result
print(",".join(str(i) for i in range(result["model"]["block_count"]) if i not in removed))' "$work/short.json"
}

# The stock reader finds the parent's tensors under new numbers, byte for byte.
same_bytes() {
    kept=$(kept) && "$PYTHON" tests/stock/gguf_read.py --compare "$SMOLLM2" "$work/short.gguf" "$kept"
}

# Block Influence of 4 windows of 512, of blocks and of their halves, against numpy on dequantized weights.
same_scores() {
    "$program" score "$SMOLLM2" --sub-blocks --calibration $text --tokens 2048 --window 512 --json "$work/scores.json" >/dev/null &&
        "$examples/windows" "$SMOLLM2" $text 2048 512 >"$work/windows.txt" &&
        "$PYTHON" tests/stock/block_influence.py "$SMOLLM2" "$work/windows.txt" --check "$work/scores.json" --tolerance 0.01
}

# Scores of converted blocks are within 1 % and one standard error of those of the weights as they are, and choose the same blocks.
same_when_converted() {
    for conversion in none f32 bf16; do
        "$program" "$1" --drop "$2" --method bi --dry-run -o "$work/x.gguf" --calibration $text --tokens 2048 --convert $conversion \
            --json "$work/$conversion.json" >/dev/null || return
    done
    "$PYTHON" - "$work" f32 bf16 <<'END'
import json, sys
folder, *conversions = sys.argv[1:]
read = lambda name: json.load(open(f"{folder}/{name}.json"))
plain = read("none")
for conversion in conversions:
    result = read(conversion)
    assert result["calibration"]["conversion"] == conversion
    assert result["removed"] == plain["removed"], (result["removed"], plain["removed"])
    pairs = [(a["bi"], b["bi"], b["bi_stderr"]) for a, b in zip(result["blocks"], plain["blocks"])]
    worst = max(abs(a - b) / b for a, b, _ in pairs)
    in_errors = max(abs(a - b) / error for a, b, error in pairs)
    print(f"{conversion}: influence within {worst:.2%} and {in_errors:.2f} standard errors")
    assert worst <= 0.01 and in_errors <= 1
END
}

# The windows are those that a stock llama.cpp cuts.
same_windows() {
    "${CC:-cc}" -std=c99 -O2 -I"$LLAMA_INCLUDE" -I"$LLAMA_INCLUDE/../ggml/include" tests/stock/logits.c -o "$work/logits" \
        "$STOCK_LIB"/libllama.* "$STOCK_LIB"/libggml.* "$STOCK_LIB"/libggml-base.* -Wl,-rpath,"$STOCK_LIB" -lm &&
        "$work/logits" --tokens --window 512 "$SMOLLM2" $text 2048 >"$work/stock.txt" &&
        cmp "$work/windows.txt" "$work/stock.txt" && echo "$(wc -w <"$work/stock.txt") tokens are the same"
}

# An output in parts, and the same as one file. The stock reader finds the same tensors in both.
split() {
    "$program" "$SMOLLM2" --blocks 12-18 -o "$work/whole.gguf" >/dev/null &&
        "$program" "$SMOLLM2" --blocks 12-18 --split-max-size 30M -o "$work/split.gguf" --json "$work/split.json" || return 1
    parts=$("$PYTHON" -c '
import json, sys
parts = json.load(open(sys.argv[1]))["output"]["parts"]
assert len(parts) > 2, parts
print(" ".join(part["path"] for part in parts))' "$work/split.json") || return 1
    tensors='^[^ ]*: [A-Z0-9_]* \[.*\] [0-9a-f]{32}$'
    "$PYTHON" tests/stock/gguf_read.py "$work/whole.gguf" | grep -E "$tensors" >"$work/whole.txt"
    for part in $parts; do
        "$PYTHON" tests/stock/gguf_read.py "$part" | grep -E "$tensors"
    done >"$work/parts.txt"
    [ -s "$work/whole.txt" ] && cmp "$work/whole.txt" "$work/parts.txt" &&
        echo "$(wc -l <"$work/parts.txt") tensors in $(echo "$parts" | wc -w) parts are those of the single file"
}

# The parts give the logits of the single file.
split_logits() {
    compared=$("$work/logits" --threads 1 --compare "$work"/split-00001-of-*.gguf "$work/whole.gguf" 100)
    echo "$compared"
    case $compared in "floats "*" differ 0 "*) ;; *) return 1 ;; esac
}

# Removed is the same as zeroed, bit for bit: ends, middle, and a scattered set.
oracle() {
    TMPDIR=$work sh tests/stock/oracle.sh "$program" "$SMOLLM2" 0,29 12-18 3,7,11,25
}

# The same for blocks without their attention, alone and beside whole blocks.
attention_oracle() {
    TMPDIR=$work sh tests/stock/oracle.sh "$program" "$SMOLLM2" /29 /3,12-14 0,7-9/5,20,29
}

# What the default features leave out is refused, with the way to build it in.
without_rpc() {
    "$program" score "$SMOLLM2" --rpc localhost:50052 >"$work/rpc.txt" 2>&1
    [ $? -eq 2 ] && cat "$work/rpc.txt" && [ "$(cat "$work/rpc.txt")" = "\
gguf-shorten: --rpc needs feature 'rpc', without which this program was built
hint: cargo build --release --features rpc builds it in" ]
}

check "a program without feature rpc refuses --rpc" without_rpc
check "seven blocks of SmolLM2 are removed" shorten
check "kept tensors are the parent's, byte for byte" same_bytes
check "parts hold the tensors of the single file" split
check "Block Influence agrees with numpy within 1 %" same_scores
check "converted blocks have the same scores and choice" same_when_converted "$SMOLLM2" 7
if can_have_stock; then
    if need_stock; then
        check "windows are those of a stock llama.cpp" same_windows
        check "a stock llama.cpp computes the same from the parts" split_logits
        check "a stock llama.cpp computes the parent without those blocks, bit for bit" oracle
        check "a stock llama.cpp computes the parent without some attention, bit for bit" attention_oracle
    else
        give_up "set-up of a stock llama.cpp"
    fi
else
    skip "windows are those of a stock llama.cpp" "$no_stock"
    skip "a stock llama.cpp computes the same from the parts" "$no_stock"
    skip "a stock llama.cpp computes the parent without those blocks, bit for bit" "$no_stock"
    skip "a stock llama.cpp computes the parent without some attention, bit for bit" "$no_stock"
fi
echo "real: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
