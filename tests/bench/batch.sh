#!/bin/bash
# What a batch costs over the main job for each model by itself, and what its second run takes.
#
#     batch.sh GGUF_SHORTEN FOLDER [FLAG...]       batch.sh target/release/gguf-shorten zoo --drop 25% --method sequential
#
# FOLDER holds the models (the example `zoo` writes 20). Prints seconds of wall time: one model after another by the main job,
# a batch with one job, with one for each core, the second run, one that has to hash all inputs again; and the peak memory
# of the batch's own process. A measurement, not a test: exits 0 if all ran.
set -eu

[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
shorten=$(realpath "$1") folder=$2 python=${PYTHON:-python3} here=$(dirname "$(realpath "$0")")
shift 2
work=$(mktemp -d "${DIR:-$PWD}/batch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mapfile -t models < <(find -L "$folder" -name '*.gguf' | sort)
cores=$(nproc)

# timed NAME COMMAND...
timed() {
    name=$1
    shift
    start=$(date +%s.%N)
    "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    end=$(date +%s.%N)
    seconds=$("$python" -c "print(f'{$end - $start:.2f}')")
    printf '%-42s %8s s\n' "$name" "$seconds"
}
one_by_one() {
    mkdir "$work/alone"
    for model in "${models[@]}"; do
        "$shorten" "$model" "$@" --threads "$cores" -q --json "$work/alone.json" -o "$work/alone/$(basename "$model")" || return 1
    done
}
batch() { "$shorten" batch "$folder" --out-dir "$work/$1" -q "${@:2}"; }

echo "${#models[@]} models, $(du -cbL "${models[@]}" | tail -n 1 | cut -f 1) bytes, $cores cores"
timed "one at a time, by the main job" one_by_one "$@"
alone=$seconds
timed "batch, one job" batch one --jobs 1 "$@"
"$python" -c "print(f'    per model over the main job: {1000 * ($seconds - $alone) / ${#models[@]}:.0f} ms')"
timed "batch, $cores jobs" batch many --jobs "$cores" "$@"
sleep 3
batch many --jobs "$cores" "$@" >/dev/null 2>&1
timed "second run" batch many --jobs "$cores" "$@"
for model in "${models[@]}"; do touch -c "$model"; done
timed "second run, inputs touched: hashed" batch many --jobs "$cores" "$@"
printf '%-42s ' "peak memory of the batch's process"
"$python" "$here/memory.py" "$shorten" batch "$folder" --out-dir "$work/memory" -q --jobs "$cores" "$@"
