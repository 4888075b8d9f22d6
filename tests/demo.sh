#!/bin/sh
# The whole way on a real model: builds the program, fetches SmolLM2, shortens it, and lets llama.cpp go on with a text.
#
#     sh tests/demo.sh
#
# Needs Rust, a C and C++ compiler and python3 with pip; what else is missing goes into the target folder (setup.sh).
set -eu
cd "$(dirname "$0")/.."
. tests/setup.sh
need_build_tools
need_smollm2

# Prints a command as a person would type it, then runs it.
show() {
    printf '\n$'
    for word in "$@"; do
        case $word in *" "*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    echo
    "$@"
}

# Together, so that what both rest on is compiled once.
cargo build --release --bins --example generate

model=${SMOLLM2#"$PWD"/}
out=${model%.gguf}-26-blocks.gguf
bin=${target#"$PWD"/}/release
show "$bin/gguf-shorten" "$model" --drop 4 --tokens 2048 -o "$out" --force
show "$bin/examples/generate" "$model" "Once upon a time" 40
show "$bin/examples/generate" "$out" "Once upon a time" 40
