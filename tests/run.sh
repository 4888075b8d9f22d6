#!/bin/sh
# All tests: those of setup.sh (setup_test.sh), those of cargo, the checks on a real model (real.sh), those with Slurm
# (slurm/test.sh).
#
#     sh tests/run.sh
#
# Needs Rust, a C and C++ compiler and python3 with pip; what else is missing goes into the target folder (setup.sh).
# The last line is 'N passed, N failed', with ', N skipped' where something was; the exit status is 0 if nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/setup.sh
need_build_tools || { echo "0 passed, 1 failed"; exit 1; }

mkdir -p "$target" && work=$(mktemp -d "$target/run.XXXXXX") || exit 1
slurm=
trap '[ -z "$slurm" ] || kill "$slurm"; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# logged NAME COMMAND...: shows what the command prints, and keeps that, its status and how long it took.
logged() {
    name=$1
    shift
    start=$(date +%s)
    { "$@" 2>&1; echo $? >"$work/$name.status"; } | tee "$work/$name.log"
    seconds=$(($(date +%s) - start))
    times="$times, $name $seconds s"
}

# count NAME WORD: adds up the numbers before a word in the closing lines of a log.
count() {
    sed -nE "s/^(test result|setup|real|slurm): (.* )?([0-9]+) $2.*/\3/p" "$work/$1.log" |
        { n=0; while read -r m; do n=$((n + m)); done; echo $n; }
}

times=
logged setup sh tests/setup_test.sh
# With the feature whose tests need it, so that all is compiled once; real.sh and slurm/test.sh have the program without. Examples
# are what those scripts build.
logged cargo cargo test --release --workspace --features rpc --no-fail-fast --tests
logged docs cargo test --release --workspace --features rpc --no-fail-fast --doc
# Slurm waits more than it works, so its test runs beside the other.
begin=$(date +%s)
bash tests/slurm/test.sh >"$work/slurm.log" 2>&1 &
slurm=$!
logged real sh tests/real.sh
wait $slurm
echo $? >"$work/slurm.status"
slurm=
times="$times, slurm beside it $(($(date +%s) - begin)) s"
cat "$work/slurm.log"

passed=0 failed=0 skipped=0
for name in setup cargo docs real slurm; do
    n=$(count $name failed)
    # Also what ends without a count has failed: a compiler's error, a crash.
    [ "$(cat "$work/$name.status" 2>/dev/null)" = 0 ] || [ "$n" -gt 0 ] || n=1
    failed=$((failed + n))
    passed=$((passed + $(count $name passed)))
    skipped=$((skipped + $(count $name ignored) + $(count $name skipped)))
done
echo
echo "took ${times#, }"
line="$passed passed, $failed failed"
[ $skipped -eq 0 ] || line="$line, $skipped skipped"
echo "$line"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
