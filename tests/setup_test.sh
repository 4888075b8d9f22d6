#!/bin/sh
# Tests of setup.sh: which files it takes for libclang, in each shell that may source it. Nothing is fetched.
#
#     sh tests/setup_test.sh
#
# Needs a C compiler and python3. The last line is 'setup: N passed, N failed, N skipped'.
set -u
cd "$(dirname "$0")/.." || exit 1

# As the scripts that source it: an error or an unset name ends them.
if [ "${1:-}" = cases ]; then
    set -eu
    . tests/setup.sh
    work=$2
else
    work=$(mktemp -d "${TMPDIR:-/tmp}/setup test.XXXXXX") || exit 1
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
fi

# expect NAME EXPECTED FOUND
expect() {
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        printf 'FAILED: %s: expected "%s", found "%s"\n' "$1" "$2" "$3"
    fi
}

# An empty folder whose path is a trap for what is not quoted. Sets `at`.
folder() {
    at="$work/$shell/[a] *"
    rm -rf "$at"
    mkdir -p "$at"
}

# finds NAME EXPECTED FILE...: what is found of these files, and that nothing is said of the others.
finds() {
    what=$1 wanted=$2
    shift 2
    expect "$what" "$wanted" "$(first_libclang "$@" 2>&1 || :)"
}

# Every name under which bindgen takes a libclang, and so those of which libclang-cpp is told apart.
names="libclang.so libclang.so.14 libclang.so.1.2 libclang-14.so libclang-14.so.1 libclang-14.so.14.0.6"

what_is_libclang() {
    for name in $names; do
        folder
        cp "$work/libclang-18.lib" "$at/$name"
        finds "libclang as $name" "$at/$name" "$at"/libclang*
        for cpp in "$work"/cpp-*.lib; do
            # In its place.
            ln -sf "$cpp" "$at/$name"
            finds "$(basename "$cpp" .lib) as $name" "" "$at"/libclang*
        done
    done
    for cpp in "$work"/cpp-*.lib; do
        folder
        ln -s "$cpp" "$at/libclang-cpp.so.14"
        ln -s "$cpp" "$at/libclang-cpp.so"
        finds "$(basename "$cpp" .lib) under its own name" "" "$at"/libclang*
    done
    # bindgen passes over what is called so, whatever it is, and takes no other name.
    for name in libclang-cpp.so.14 libclang_shared.so clang.so libclang.so-14; do
        folder
        cp "$work/libclang-18.lib" "$at/$name"
        finds "libclang as $name" "" "$at"/*
    done
    for version in 8 9 19 none; do
        folder
        cp "$work/libclang-$version.lib" "$at/libclang.so.1"
        case $version in 8 | none) expected= ;; *) expected=$at/libclang.so.1 ;; esac
        finds "libclang of version $version" "$expected" "$at"/libclang*
    done
}

what_is_passed_over() {
    folder
    finds "an empty folder" "" "$at"/libclang*
    finds "no folder" "" "$at/none"/libclang* "" /libclang*
    ln -s "$at/gone" "$at/libclang-1.so"
    mkdir "$at/libclang-2.so"
    echo "no library" >"$at/libclang-3.so"
    : >"$at/libclang-4.so"
    cp "$work/foreign.lib" "$at/libclang-5.so"
    cp "$work/crash.lib" "$at/libclang-6.so"
    cp "$work/cpp-like.lib" "$at/libclang-7.so"
    cp "$work/libclang-8.lib" "$at/libclang-8.so"
    finds "a broken link, a folder, a text, an empty file, another CPU's, one that crashes, an old one" "" "$at"/libclang*
    cp "$work/libclang-9.lib" "$at/libclang-9.so"
    finds "the usable one after them" "$at/libclang-9.so" "$at"/libclang*
    ln -s libclang-9.so "$at/libclang-0.so"
    finds "a link to it" "$at/libclang-0.so" "$at"/libclang*
}

what_a_user_says() {
    folder
    cp "$work/libclang-18.lib" "$at/libclang.so.18"
    cp "$work/libclang-9.lib" "$at/libclang-9.so"
    ln -s "$work/cpp-like.lib" "$at/libclang-99.so"
    system_libclang() { echo "that of the system"; }
    told() {
        LIBCLANG_PATH=$1
        find_libclang 2>&1
    }
    expect "nothing said" "that of the system" "$(told "")"
    expect "a folder" "$at/libclang-9.so" "$(told "$at")"
    expect "a file, and not its neighbour" "$at/libclang.so.18" "$(told "$at/libclang.so.18")"
    expect "a folder below this one" "$at/libclang-9.so" "$(cd "$work" && told "$shell/[a] *")"
    for wrong in "$at/libclang-99.so" "$at/gone" "$work"; do
        expect "not usable: $(basename "$wrong")" "setup: LIBCLANG_PATH=$wrong is no usable libclang
that of the system" "$(told "$wrong")"
    done
}

# need_build_tools on a machine of which only this is known: the folder of the libraries of its system.
# shellcheck disable=SC2317
tools_of() {
    system=$1
    system_libclang() { first_libclang "$system"/libclang*; }
    need_python() { site=$work/$shell/site; }
    pip_install() {
        echo "fetched $1"
        case $1 in libclang==*) mkdir -p "$site/clang/native" && cp "$work/libclang-18.lib" "$site/clang/native/libclang.so" ;; esac
    }
    # All else is there.
    cargo() { :; }
    cmake() { :; }
    make() { :; }
    rm -rf "$work/$shell/site"
    unset LIBCLANG_PATH
    need_build_tools 2>&1
    echo "$LIBCLANG_PATH"
}

what_is_fetched() {
    fetched="fetched libclang==18.1.1
$work/$shell/site/clang/native/libclang.so"
    for cpp in "$work"/cpp-*.lib; do
        folder
        ln -s "$cpp" "$at/libclang-cpp.so.14"
        expect "only $(basename "$cpp" .lib): one is fetched" "$fetched" "$(tools_of "$at")"
    done
    ln -s gone "$at/libclang.so"
    expect "and a broken link: one is fetched" "$fetched" "$(tools_of "$at")"
    cp "$work/libclang-8.lib" "$at/libclang.so.8"
    expect "and an old one: one is fetched" "$fetched" "$(tools_of "$at")"
    cp "$work/libclang-18.lib" "$at/libclang.so.18"
    expect "and a usable one, of a version alone: nothing is fetched" "$at/libclang.so.18" "$(tools_of "$at")"
}

if [ "${1:-}" = cases ]; then
    shell=$3
    what_is_libclang
    what_is_passed_over
    what_a_user_says
    what_is_fetched
    exit
fi

# library NAME: from C on stdin.
library() { "${CC:-cc}" -shared -fPIC -x c - -o "$work/$1.lib"; }
give_up() {
    echo "FAILED: $1"
    echo "setup: 0 passed, 1 failed, 0 skipped"
    exit 1
}

for version in 8 9 18 19 none; do
    text="a clang version $version.0.1 (of a test)"
    [ $version != none ] || text="a clang"
    library libclang-$version <<END || give_up "a libclang of the tests is made"
typedef struct { const void *data; unsigned flags; } CXString;
CXString clang_getClangVersion(void) { CXString s = { "$text", 0 }; return s; }
const char *clang_getCString(CXString s) { return s.data; }
END
done
# Loads, and has none of the functions of libclang.
echo 'int _ZN5clang4Decl4dumpEv(void) { return 0; }' | library cpp-like || give_up "a libclang-cpp of the tests is made"
echo 'void __attribute__((constructor)) crash(void) { __builtin_trap(); }' | library crash || give_up "a crash is made"
# The other class of ELF: 32 bits for 64.
python3 -c '
import sys
library = bytearray(open(sys.argv[1], "rb").read())
library[4] ^= 3
open(sys.argv[2], "wb").write(library)' "$work/libclang-18.lib" "$work/foreign.lib" || give_up "a foreign library is made"
# A real one, where there is one.
for cpp in /usr/lib*/*/*/libclang-cpp.so.* /usr/lib*/*/libclang-cpp.so.* /usr/lib*/libclang-cpp.so.*; do
    [ -f "$cpp" ] && ln -s "$cpp" "$work/cpp-real.lib" && break
done
# What does not load proves nothing.
for cpp in "$work"/cpp-*.lib; do
    python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$cpp" || give_up "$cpp loads"
done

passed=0 failed=0 skipped=0
for shell in sh bash; do
    command -v $shell >/dev/null || { echo "skipped: $shell is missing"; skipped=$((skipped + 1)); continue; }
    $shell tests/setup_test.sh cases "$work" $shell >"$work/log" 2>&1
    status=$?
    sed "s/^/$shell: /" "$work/log"
    passed=$((passed + $(grep -c '^ok: ' "$work/log")))
    n=$(grep -c '^FAILED: ' "$work/log")
    # Also what ends before its end has failed.
    [ $status -eq 0 ] || [ "$n" -gt 0 ] || n=1
    failed=$((failed + n))
done
[ -e "$work/cpp-real.lib" ] || echo "no libclang-cpp here: only one that was made stands for it"
echo "setup: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
