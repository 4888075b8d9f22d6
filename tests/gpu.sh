#!/bin/sh
# What a GPU gives, held against the CPU: score, eval, search, healing and verify --run. No part of the tests that always run.
#
#     gpu.sh vulkan|cuda|rocm|metal [MODEL...]         gpu.sh vulkan "$SMOLLM2"
#
# Builds with that feature, in a target folder of its own. Without models, tiny ones with random weights of three architectures
# are taken, and SmolLM2. The CPU's results are of the same build with all devices hidden.
#
# Environment: GPU_LAYERS  for --gpu-layers (99)
#              THREADS     for both (2)
# Vulkan in software: GGML_VK_VISIBLE_DEVICES=0 makes llama.cpp take Mesa's lavapipe.
#
# Bounds: each block's influence within 3 % (or 0.0001), perplexity within 1 %, the loss of what a search chose and of what was
# healed within 5 %; a file and its zeroed parent give the same logits bit for bit.
# Prints a line for each check. The last one is 'gpu: N passed, N failed'; the exit status is 0 if none failed.
set -u

[ $# -ge 1 ] || { sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2; }
feature=$1
shift
cd "$(dirname "$0")/.." || exit 1
. tests/setup.sh

passed=0 failed=0
mkdir -p "$target" && work=$(mktemp -d "$target/gpu.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

give_up() {
    echo "FAILED: $1"
    echo "gpu: $passed passed, $((failed + 1)) failed"
    exit 1
}

need_build_tools && need_python || give_up "set-up"
CARGO_TARGET_DIR=$target/gpu cargo build --release --features "$feature" --bins --example zoo || give_up "build"
program=$target/gpu/release/gguf-shorten
"$program" --version
hidden="GGML_VK_VISIBLE_DEVICES= CUDA_VISIBLE_DEVICES= HIP_VISIBLE_DEVICES= GGML_METAL_DEVICES=0"

if [ $# -eq 0 ]; then
    need_smollm2 || give_up "set-up"
    mkdir "$work/zoo" && "$target/gpu/release/examples/zoo" "$work/zoo" || give_up "tiny models"
    set -- "$work/zoo/llama.gguf" "$work/zoo/qwen2.gguf" "$work/zoo/gemma3.gguf" "$SMOLLM2"
fi

# both NAME ARGUMENTS...: the results on the CPU and on the GPU are $work/NAME-cpu.json and $work/NAME-gpu.json. An argument
# DEVICE stands for cpu or gpu.
both() {
    name=$1
    shift
    for device in cpu gpu; do
        case $device in
            cpu) layers=0 environment=$hidden ;;
            gpu) layers=${GPU_LAYERS:-99} environment= ;;
        esac
        # Words of the environment, and of the arguments, have no blanks in them.
        # shellcheck disable=SC2046,SC2086
        env $environment GGUF_SHORTEN_CACHE="$work/cache" "$program" $(echo "$*" | sed "s/DEVICE/$device/g") \
            --gpu-layers "$layers" --threads "${THREADS:-2}" --quiet --json "$work/$name-$device.json" \
            >"$work/log" 2>&1 || { cat "$work/log"; return 1; }
    done
}

# close NAME EXPRESSION RELATIVE [ABSOLUTE]: the numbers that a Python expression makes of each result `r` are within that.
close() {
    "$PYTHON" - "$work/$1-cpu.json" "$work/$1-gpu.json" "$2" "$3" "${4:-0}" <<'END'
import json, sys

numbers = [eval(sys.argv[3], {"r": json.load(open(path))}) for path in sys.argv[1:3]]
relative, absolute = float(sys.argv[4]), float(sys.argv[5])
cpu, gpu = ([float(number) for number in each] for each in numbers)
assert cpu and len(cpu) == len(gpu), (cpu, gpu)
worst = max(abs(a - b) / max(abs(a), 1e-30) for a, b in zip(cpu, gpu))
print(f"largest relative difference {worst:.2e} of {len(cpu)} numbers, CPU {cpu[0]:.6g}, GPU {gpu[0]:.6g}")
sys.exit(not all(abs(a - b) <= max(absolute, relative * abs(a)) for a, b in zip(cpu, gpu)))
END
}

check() {
    checked=$1
    shift
    if "$@" >"$work/shown" 2>&1; then
        passed=$((passed + 1)) result=ok
    else
        failed=$((failed + 1)) result=FAILED
    fi
    echo "$result: $checked"
    sed 's/^/    /' "$work/shown"
}

influence='[block["bi"] for block in r["blocks"]]'
text="--tokens 256 --window 64"

scores() { both score score "$1" $text --convert none && close score "$influence" 0.03 0.0001; }
by_blocks() {
    # What it takes is said where there is too little.
    least=$("$program" score "$1" $text --memory 1M 2>&1 | sed -n 's/.*takes about \([0-9.]*\) MB.*/\1/p')
    both blocks score "$1" $text --convert none --memory "$(awk "BEGIN { print $least * 1.01 }")MB" &&
        close blocks "$influence" 0.03 0.0001
}
perplexity() { both eval eval "$1" $text && close eval '[r["perplexity"]]' 0.01; }
search() { both search "$1" --drop 2 --method search $text --dry-run -o "$work/x.gguf" && close search '[r["search"]["kl_divergence"]]' 0.05; }
heal() {
    both heal "$1" --blocks 5-6 --heal linear --tokens 1024 --window 64 --force -o "$work/healed-DEVICE.gguf" &&
        close heal '[r["heal"]["held_out"]["loss_healed"]]' 0.05 &&
        "$program" verify "$work/healed-gpu.gguf" --parent "$1"
}
verify_run() {
    "$program" "$1" --blocks 5-6 --force -o "$work/short.gguf" >/dev/null &&
        "$program" verify "$work/short.gguf" --parent "$1" --run
}

for model in "$@"; do
    file=${model##*/}
    check "$file: score" scores "$model"
    # Of a tiny model the whole takes as much.
    [ "$(wc -c <"$model")" -lt 50000000 ] || check "$file: score block by block" by_blocks "$model"
    check "$file: eval" perplexity "$model"
    check "$file: search" search "$model"
    # The tiny ones have a scale for each matrix, and are not healed.
    [ "$model" = "${model#"$work"}" ] && check "$file: heal" heal "$model"
    check "$file: verify --run" verify_run "$model"
done
echo "gpu: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
