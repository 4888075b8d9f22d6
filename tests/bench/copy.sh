#!/bin/sh
# Wall time of removing blocks over `cp` of the same number of bytes, runs taking turns.
#
#     copy.sh GGUF_SHORTEN MODEL BLOCKS [RUNS]       copy.sh target/release/gguf-shorten gemma3.gguf 8,9 9
#
# COLD=1 drops the page cache before every run (needs root). SYNC=1 has cp followed by fsync of the copy, which is what
# gguf-shorten does before it renames its output. Prints seconds of each run and the median of the paired ratios. A
# measurement, not a test: always exits 0 if all ran.
set -eu

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
shorten=$1 model=$2 blocks=$3 runs=${4:-9} python=${PYTHON:-python3}

work=$(mktemp -d "${DIR:-$PWD}/copy.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$shorten" "$model" --blocks "$blocks" -o "$work/same-size.gguf" -q >/dev/null

"$python" - "$shorten" "$model" "$blocks" "$runs" "$work" <<'END'
import os, statistics, subprocess, sys, time

shorten, model, blocks, runs, work = sys.argv[1:]
source, out = f"{work}/same-size.gguf", f"{work}/out.gguf"


def timed(command, sync):
    if os.path.exists(out):
        os.remove(out)
    os.sync()
    if os.environ.get("COLD"):
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("3")
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if sync:
        file = os.open(out, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    return time.perf_counter() - start


ratios = []
for _ in range(int(runs)):
    cp = timed(["cp", source, out], bool(os.environ.get("SYNC")))
    ours = timed([shorten, model, "--blocks", blocks, "-o", out, "-q"], False)
    ratios.append(ours / cp)
    print(f"gguf-shorten {ours:.3f} s   cp {cp:.3f} s   ratio {ours / cp:.2f}")
print(f"median of {len(ratios)} paired ratios: {statistics.median(ratios):.2f}")
END
