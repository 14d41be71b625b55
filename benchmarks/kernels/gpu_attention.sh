#!/bin/sh
# What the attention kernels need a GPU for, in one go: build, tests, memory and races, short sequences whole beside the kernels for any
# length and the peers, shared prefixes beside plain streams.
#     PYTHON=python3 OUT=folder benchmarks/kernels/gpu_attention.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
mkdir -p "$OUT"
capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
failed=0

step() { # name, lines to show, command...: output to a file, its end to the terminal
    name=$1 shown=$2 began=$(date +%s)
    shift 2
    "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    tail -n "$shown" "$OUT/$name.txt"
    echo "== $name: status $status, $(($(date +%s) - began)) s"
    [ $status -eq 0 ]
}

step build 1 "$PYTHON" -m unimo_ds kernels build --arch "sm_$capability" || exit 1
grep -h "shared prefixes" "$OUT/build.txt" | cut -d"|" -f4-6
waiting=""
if [ -x "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        for mix in shared unimo; do
            step $tool.$mix 3 timeout 80 "$sanitizer" --tool $tool --error-exitcode 3 "$PYTHON" -m benchmarks.kernels.attention_once \
                --mix $mix --scale 0.15 --whole beside >"$OUT/$tool.$mix.log" 2>&1 &
            waiting="$waiting $!"
        done
    done
fi
step tests 3 "$PYTHON" -m pytest -q -x tests/kernels/test_attention_gpu.py || failed=1
for process in $waiting; do wait "$process" || failed=1; done
cat "$OUT"/*check.*.log 2>/dev/null
rm -f "$OUT"/*check.*.log
step whole 24 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
    --mixes texts_128,texts_256,unimo --json "$OUT/attention_whole.json" || failed=1
step shared 14 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
    --mixes shared,repeated --json "$OUT/attention_shared.json" || failed=1
step plain 3 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
    --mixes unimo_shares --contenders "ours native" --dropout 0.1 --json "$OUT/attention_plain.json" || failed=1
exit $failed
