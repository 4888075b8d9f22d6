# Builds the wheel and an archive of the same. Sourced, from the top folder, after tests/setup.sh:
#
#     need_build_tools && need_package_tools && build_package
#
# They are for any x86-64 and for glibc from 2.17 on: zig brings compiler, C++ library and the symbols of that glibc. What is
# built is in a target folder of its own. WHEEL and ARCHIVE are set to what was made.
# shellcheck shell=sh disable=SC2154 # `target` is of tests/setup.sh

MATURIN_VERSION=1.16.0
ZIG_VERSION=0.16.0
PACKAGE_TRIPLE=x86_64-unknown-linux-gnu
PACKAGE_TAG=manylinux2014

package_tools=$target/package-tools
package_build=$target/package
package_out=$target/package-out

# maturin and zig, from PyPI, in a place of their own.
need_package_tools() {
    [ "$(uname -sm)" = "Linux x86_64" ] || { say "packages are made on Linux on x86-64 alone"; return 1; }
    [ -x "$package_tools/bin/pip" ] || python3 -m venv --clear "$package_tools" || return 1
    "$package_tools/bin/pip" install --quiet --disable-pip-version-check \
        "maturin==$MATURIN_VERSION" "ziglang==$ZIG_VERSION" >&2 || { say "pip could not fetch maturin and zig"; return 1; }
}

# run_maturin: in the stage, with nothing of this machine left in what is built.
run_maturin() {
    registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
    map=
    rust_map=
    for folder in "$registry"/*; do
        map="$map -ffile-prefix-map=$folder=/crates"
        rust_map="$rust_map --remap-path-prefix=$folder=/crates"
    done
    map="$map -ffile-prefix-map=$PWD=/gguf-shorten"
    rust_map="$rust_map --remap-path-prefix=$PWD=/gguf-shorten"
    case $package_build in
        "$PWD"/*) ;;
        *)
            map="$map -ffile-prefix-map=$package_build=/build"
            rust_map="$rust_map --remap-path-prefix=$package_build=/build"
            ;;
    esac
    (
        cd "$stage" || exit
        PATH=$package_tools/bin:$PATH
        CARGO_TARGET_DIR=$package_build
        ZIG_GLOBAL_CACHE_DIR=$package_tools/zig-cache
        CARGO_ZIGBUILD_CACHE_DIR=$package_tools/zigbuild
        # In place of those of .cargo/config.toml, whose code is for this machine's processor.
        RUSTFLAGS=$rust_map
        CFLAGS=$map
        # The folder of the build, in which ggml would look for modules.
        CXXFLAGS="$map -UGGML_BACKEND_DIR"
        # Libraries look for one another in their own folder. What zig's linker writes for it, rpath.py mends.
        CMAKE_INSTALL_RPATH=\$ORIGIN
        CMAKE_BUILD_WITH_INSTALL_RPATH=ON
        CMAKE_SHARED_LINKER_FLAGS=-Wl,-s
        CMAKE_MODULE_LINKER_FLAGS=-Wl,-s
        CMAKE_BUILD_PARALLEL_LEVEL=${PACKAGE_JOBS:-$(nproc)}
        unset CARGO_ENCODED_RUSTFLAGS
        export PATH CARGO_TARGET_DIR ZIG_GLOBAL_CACHE_DIR CARGO_ZIGBUILD_CACHE_DIR RUSTFLAGS CFLAGS CXXFLAGS
        export CMAKE_INSTALL_RPATH CMAKE_BUILD_WITH_INSTALL_RPATH CMAKE_SHARED_LINKER_FLAGS CMAKE_MODULE_LINKER_FLAGS CMAKE_BUILD_PARALLEL_LEVEL
        maturin build --release --zig --target $PACKAGE_TRIPLE --compatibility $PACKAGE_TAG --auditwheel skip \
            --jobs "$CMAKE_BUILD_PARALLEL_LEVEL" --out "$1" >&2
    )
}

# llama.cpp as it was built: shared libraries under the names by which they are looked for, and modules.
stage_libraries() {
    built=$(ls -td "$package_build/$PACKAGE_TRIPLE"/release/build/llama-cpp-sys-2-*/out | head -n 1)
    for library in llama ggml ggml-base; do
        # The name with the first number of the version is the one that others ask for.
        for file in "$built"/lib*/lib$library.so.[0-9]; do cp "$file" "$libraries/" || return 1; done
    done
    cp "$built"/backends/libggml-cpu-*.so "$libraries/"
}

build_package() {
    stage=$package_build/stage
    libraries=$stage/data/data/lib/gguf-shorten
    rm -rf "$stage" "$package_out"
    mkdir -p "$libraries" "$stage/licences" "$package_out" || return 1
    cp README.md "$stage/" || return 1
    sed "s|^\[tool.maturin\]|&\nmanifest-path = \"$PWD/Cargo.toml\"|" .package/pyproject.toml >"$stage/pyproject.toml" || return 1
    cp LICENSE "$stage/licences/gguf-shorten.txt" || return 1
    # The first time for what cargo builds, the second with it.
    run_maturin "$package_build/first" || return 1
    stage_libraries || { say "llama.cpp's libraries are not where they should be"; return 1; }
    "$package_tools/bin/python" .package/licences.py "$stage/licences/third-party.txt" || return 1
    run_maturin "$package_out" || return 1
    WHEEL=$(ls "$package_out"/gguf_shorten-*.whl) || return 1
    "$package_tools/bin/python" .package/rpath.py "$WHEEL" || return 1
    ARCHIVE=$("$package_tools/bin/python" .package/archive.py "$WHEEL") || return 1
    export WHEEL ARCHIVE
}
