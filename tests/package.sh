#!/bin/sh
# Makes the wheel and the archive, and tries both as somebody who has neither Rust nor a compiler: in a fresh place, with nothing
# of this machine on the PATH, with the build moved away, from a folder that holds libraries which must not be loaded.
#
#     sh tests/package.sh            makes them first
#     sh tests/package.sh --made     tries those that were made before
#
# In the end: where they are, how large, and what it takes from nothing to the first shortened file.
set -eu
cd "$(dirname "$0")/.."
. tests/setup.sh
. .package/build.sh

# Bytes of a package at most.
LIMIT=40000000
# The newest glibc that may be asked for: that of RHEL 8 and Debian 10.
GLIBC=2.28

fail() { echo "package: $*" >&2; exit 1; }

# The time in milliseconds.
now() { python3 -c 'import time; print(time.monotonic_ns() // 1000000)'; }

# since MILLISECONDS: seconds with one digit.
since() { python3 -c "print(f'{($(now) - $1) / 1000:.1f}')"; }

bytes_of() { wc -c <"$1" | tr -d ' '; }

# What a package must be before it is tried. $1: where it is unpacked.
check_files() {
    for file in "$1"/bin/gguf-shorten "$1"/lib/gguf-shorten/*.so*; do
        for place in "$PWD" "$target" "${CARGO_HOME:-$HOME/.cargo}" "${RUSTUP_HOME:-$HOME/.rustup}"; do
            ! grep -aqF "$place/" "$file" || fail "$file names $place, a folder of the build"
        done
        # An rpath comes before LD_LIBRARY_PATH, a runpath after.
        objdump -p "$file" >"$work/headers" || fail "$file cannot be read"
        grep -q '^ *RPATH  *\$ORIGIN' "$work/headers" && ! grep -q RUNPATH "$work/headers" ||
            fail "$file does not look beside itself first"
        objdump -T "$file" >"$work/symbols" || fail "$file cannot be read"
        newest=$(grep -o 'GLIBC_[0-9.]*' "$work/symbols" | sed 's/GLIBC_//' | sort -uV | tail -n 1)
        [ -n "$newest" ] || fail "$file asks for no glibc at all"
        [ "$(printf '%s\n' "$newest" "$GLIBC" | sort -V | tail -n 1)" = "$GLIBC" ] || fail "$file needs glibc $newest"
        echo "$newest" >>"$work/glibc"
    done
    n=$(ls "$1"/lib/gguf-shorten/libggml-cpu-*.so | wc -l)
    [ "$n" -ge 10 ] || fail "$n kinds of kernels, expected at least 10"
    grep -q "Permission is hereby granted" "$1"/licences/gguf-shorten.txt || fail "no licence of our own"
    for name in "llama.cpp and ggml" llamafile libcxx "Rust standard library" "anyhow "; do
        grep -qF "$name" "$1"/licences/third-party.txt || fail "no licence of $name"
    done
}

# Libraries under every name that could be looked for here. One that is loaded says so and ends the process.
make_hostile() {
    mkdir -p "$hostile"
    cat >"$work/hostile.c" <<'END'
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) { (void)!write(1, "HOSTILE\n", 8); _exit(66); }
int ggml_backend_score(void) { return 1 << 30; }
void *ggml_backend_init(void) { return 0; }
END
    "${CC:-cc}" -shared -fPIC -o "$hostile/libggml-cpu-x64.so" "$work/hostile.c"
    for name in libggml-cpu-zen4.so libggml-cpu.so libggml-blas.so libllama.so.0 libggml.so.0 libggml-base.so.0; do
        cp "$hostile/libggml-cpu-x64.so" "$hostile/$name"
    done
}

# in_hostile COMMAND...: with nothing else of this machine to be found, and variables that name the hostile libraries.
in_hostile() {
    (
        cd "$hostile"
        env -i PATH="$only" HOME="$work/home" LD_LIBRARY_PATH="$hostile" GGML_BACKEND_PATH="$hostile/libggml-cpu-x64.so" "$@"
    )
}

# try_program NAME: the main job by `gguf-shorten` of the PATH `only`, and that its kernels are its own.
try_program() {
    echo "== $1"
    # No scores are kept from another try.
    rm -rf "$work/home" && mkdir "$work/home"
    for tool in cargo cmake cc; do
        ! (PATH=$only && command -v $tool >/dev/null) || fail "$1: $tool is on the PATH"
    done
    in_hostile gguf-shorten --version >"$work/version" || fail "$1: --version ends with $?"
    cat "$work/version"
    grep -q "^kernels $2/lib/gguf-shorten/libggml-cpu-[a-z0-9_]*\.so$" "$work/version" ||
        fail "$1: kernels of $2/lib/gguf-shorten were expected"
    in_hostile gguf-shorten "$model" --drop 4 --method bi -o "$work/$1.gguf" >"$work/$1.txt" ||
        { cat "$work/$1.txt"; fail "$1: the main job ends with $?"; }
    grep '^removed\|^output' "$work/$1.txt"
    in_hostile gguf-shorten verify "$work/$1.gguf" --parent "$model" >/dev/null || fail "$1: its output is not verified"
    ! grep -q HOSTILE "$work/version" "$work/$1.txt" || fail "$1: a library of the current folder was loaded"
}

# Kernels of every kind that this processor can run give the same scores, and the hostile library is one that would be noticed.
try_kinds() {
    echo "== kinds of kernels"
    cp -r "$1" "$work/one"
    only=$work/one/bin
    rm "$work/one"/lib/gguf-shorten/libggml-cpu-*
    status=0
    in_hostile gguf-shorten score "$model" --tokens 512 >"$work/none" 2>&1 || status=$?
    [ $status -eq 1 ] && grep -q "llama.cpp has no kernels for this machine: no module libggml-cpu-\*.so" "$work/none" ||
        { cat "$work/none"; fail "without kernels the program ends with $status"; }
    cp "$hostile/libggml-cpu-x64.so" "$work/one/lib/gguf-shorten/"
    status=0
    in_hostile gguf-shorten --version >"$work/loaded" 2>&1 || status=$?
    [ $status -eq 66 ] && grep -q HOSTILE "$work/loaded" || fail "the hostile library was loaded and not noticed"
    first=
    for module in "$1"/lib/gguf-shorten/libggml-cpu-*.so; do
        rm "$work/one"/lib/gguf-shorten/libggml-cpu-*
        cp "$module" "$work/one/lib/gguf-shorten/"
        kind=$(basename "$module" .so)
        if ! in_hostile gguf-shorten score "$model" --tokens 512 --convert none --no-cache --json - >"$work/json" 2>"$work/none"; then
            grep -q "no kernels for this machine" "$work/none" || { cat "$work/none"; fail "$kind: score fails"; }
            echo "$kind: not for this processor"
            continue
        fi
        [ -n "$first" ] || { first=$kind; cp "$work/json" "$work/first"; }
        python3 - "$work/first" "$work/json" <<'END' || fail "$kind: other scores than $first"
import json, sys

first, other = ([block["bi"] for block in json.load(open(path))["blocks"]] for path in sys.argv[1:])
worst = max(abs(a - b) / a for a, b in zip(first, other))
print(f"largest difference {worst:.1e}", end=" ")
# The kinds round activations alike and add up in another order.
sys.exit(not (len(first) == len(other) > 0 and worst < 0.02))
END
        echo "$kind"
    done
    [ "$first" != "" ] && [ "$first" != "$kind" ] || fail "only one kind of kernels was tried"
}

need_python
need_smollm2
work=$(cd "$(mktemp -d)" && pwd -P)
hostile=$work/hostile
model=$work/model.gguf
moved=
# The folders of the build, where they were.
restore() {
    [ -z "$moved" ] || mv "$package_build-moved" "$package_build"
    rm -rf "$work"
}
trap restore EXIT
trap 'exit 1' INT TERM
cp "$SMOLLM2" "$model"

if [ "${1:-}" != --made ]; then
    need_build_tools
    need_package_tools
    start=$(now)
    build_package
    built=$(since "$start")
fi
WHEEL=$(ls "$package_out"/gguf_shorten-*.whl)
ARCHIVE=$(ls "$package_out"/gguf-shorten-*.tar.gz)
for file in "$WHEEL" "$ARCHIVE"; do
    [ "$(bytes_of "$file")" -le $LIMIT ] || fail "$file has $(bytes_of "$file") bytes, more than $LIMIT"
done
make_hostile
if [ -d "$package_build" ]; then
    mv "$package_build" "$package_build-moved"
    moved=yes
fi

mkdir "$work/archive"
tar -xzf "$ARCHIVE" -C "$work/archive"
unpacked=$(echo "$work"/archive/gguf-shorten-*)
check_files "$unpacked"
# A link to the program finds what is beside the program.
mkdir "$work/links"
ln -s "$unpacked/bin/gguf-shorten" "$work/links/gguf-shorten"
only=$work/links
try_program archive "$unpacked"

start=$(now)
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$WHEEL"
installed=$(since "$start")
only=$work/venv/bin
try_program wheel "$work/venv"
shortened=$(since "$start")
for file in "$unpacked"/bin/* "$unpacked"/lib/gguf-shorten/*; do
    cmp "$file" "$work/venv/${file#"$unpacked"/}" || fail "wheel and archive differ"
done
try_kinds "$unpacked"

echo
echo "wheel    $WHEEL, $(bytes_of "$WHEEL") bytes"
echo "archive  $ARCHIVE, $(bytes_of "$ARCHIVE") bytes"
echo "glibc    $(sort -V "$work/glibc" | tail -n 1) or newer"
[ -z "${built:-}" ] || echo "made     in $built s"
echo "first    $installed s for a fresh venv with the wheel in it, $shortened s until SmolLM2 was shortened and verified"
