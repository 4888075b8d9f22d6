#!/bin/bash
# Runs batch.sbatch with a real Slurm: one controller and one node, on this machine, all in a folder of the test.
#
#     bash tests/slurm/test.sh
#
# Needs slurmctld, slurmd, sbatch and munged (Debian: slurm-wlm), which are started here with a configuration of their own and
# stopped at the end. The last line is 'slurm: N passed, N failed, N skipped'; skipped is all of it where those are missing.
set -u
cd "$(dirname "$0")/../.." || exit 1
PATH=$PATH:/usr/sbin:/sbin

for command in slurmctld slurmd sbatch squeue scontrol munged; do
    command -v "$command" >/dev/null || {
        echo "skipped: Slurm: $command is missing"
        echo "slurm: 0 passed, 0 failed, 1 skipped"
        exit 0
    }
done

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --bins --example zoo || { echo "slurm: 0 passed, 1 failed, 0 skipped"; exit 1; }
program=$target/release/gguf-shorten

work=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX") || exit 1
daemons=()
stop() {
    # In the order in which they need one another; those of this test alone.
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
        kill "${daemons[i]}" 2>/dev/null && wait "${daemons[i]}" 2>/dev/null
    done
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' HUP INT TERM

passed=0 failed=0
check() {
    name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok: $name"
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
    fi
}
give_up() {
    echo "FAILED: $1"
    tail -n 20 "$work"/*.log
    echo "slurm: $passed passed, $((failed + 1)) failed, 0 skipped"
    exit 1
}

# Two ports that nobody uses.
read -r ctld_port slurmd_port < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
host=$(hostname -s)
mkdir "$work/state" "$work/spool" "$work/munge"
chmod 700 "$work/munge"
head -c 64 /dev/urandom >"$work/munge/key"
chmod 400 "$work/munge/key"

cat >"$work/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=30 State=UP
END
export SLURM_CONF=$work/slurm.conf

# start NAME COMMAND...: a daemon in the foreground of this shell's children.
start() {
    name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    daemons+=($!)
}
# wait_for SECONDS COMMAND...
wait_for() {
    n=$1
    shift
    for ((i = 0; i < n * 5; i++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    return 1
}

start munged munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" \
    --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" --log-file="$work/munge/log"
wait_for 20 test -S "$work/munge/socket" || give_up "munged starts"
start slurmctld slurmctld -D -f "$SLURM_CONF"
start slurmd slurmd -D -f "$SLURM_CONF" -N "$host"
is_up() { sinfo -h -o %t | grep -qx -e idle -e mix -e alloc; }
wait_for 60 is_up || give_up "a node is up"

mkdir "$work/zoo"
"$target/release/examples/zoo" "$work/zoo" || give_up "models are made"
echo "not a model" >"$work/zoo/broken.gguf"

script=$PWD/tests/slurm/batch.sbatch
flags=(--drop 25% --method sequential)
# submit ARRAY FLAG...: runs the script as an array; the flags are those of sbatch.
submit() {
    (cd "$work" && GGUF_SHORTEN=$program sbatch --array="$1" --cpus-per-task=1 "${@:2}" "$script" zoo out \
        "${flags[@]}")
}
results() { cat "$work"/out/results-*-of-"$1".jsonl; }
# every_model_once N: the results of N tasks are those of 21 models, each by one task; the outputs are there.
every_model_once() {
    python3 - "$work/out" "$1" <<'END'
import glob, json, os, sys
out, n = sys.argv[1:]
files = sorted(glob.glob(f"{out}/results-*-of-{n}.jsonl"))
lines = [json.loads(line) for file in files for line in open(file)]
models = [line["model"]["path"] for line in lines]
failed = [line["model"]["path"] for line in lines if line["error"] is not None]
print(f"    {len(files)} tasks, {[sum(1 for _ in open(file)) for file in files]} models, failed: {failed}")
assert len(files) == int(n) and len(models) == len(set(models)) == 21, models
assert failed == ["zoo/broken.gguf"], failed
assert all(os.path.exists(os.path.join(os.path.dirname(out), part["path"]))
           for line in lines if line["output"] for part in line["output"]["parts"])
END
}

# One task has the file that is no model, and fails; sbatch says so by its status.
submit 1-3 --wait && give_up "an array with a broken model fails"
check "every model is one task's" every_model_once 3
before=$(cd "$work/out" && sha256sum -- *.gguf)
rm "$work/zoo/broken.gguf"
check "the array goes on where it ended" submit 1-3 --wait
check "nothing was done twice" test "$(cd "$work/out" && sha256sum -- *.gguf)" = "$before"
done_before() { [ "$(grep -h 'done before' "$work"/gguf-shorten-*.log | grep -c 'batch ')" -ge 1 ]; }
check "what was done is left alone" done_before
# A whole array that counts from another number, in steps.
rm -r "$work/out"
check "an array of other numbers" submit 4-8:2 --wait
check "takes the same shares" test "$(results 3 | wc -l)" = 20
# One that is cancelled leaves nothing half, and goes on.
rm -r "$work/out"
flags=(--drop 25%)
id=$(submit 1-2 --parsable) || give_up "an array is submitted"
some_are_done() { [ "$(cat "$work"/out/results-*.jsonl 2>/dev/null | grep -c '"error":null')" -ge 1 ]; }
wait_for 120 some_are_done || give_up "an array with calibration begins"
scancel "$id"
is_gone() { [ -z "$(squeue -h)" ]; }
check "an array is cancelled" wait_for 60 is_gone
check "and leaves nothing half" test -z "$(find "$work/out" -name '.gguf-shorten-*')"
check "and goes on" submit 1-2 --wait
echo "slurm: $passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
