#!/bin/sh
# Everything about the contrastive kernels that needs a GPU, in one go: build, races and memory, tests, benchmark.
#     PYTHON=python3 INF_CL=checkout/of/Inf-CLIP OUT=folder benchmarks/kernels/gpu_contrastive.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
INF_CL=${INF_CL:-}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
mkdir -p "$OUT"
capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
failed=0

step() { # name, command...: output to a file, its end to the terminal
    name=$1
    shift
    began=$(date +%s)
    "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    tail -n "${LINES_SHOWN:-6}" "$OUT/$name.txt"
    echo "== $name: status $status, $(($(date +%s) - began)) s"
    [ $status -eq 0 ] || failed=1
}

"$nvcc" -x cu -O1 -std=c++17 "-gencode=arch=compute_$capability,code=sm_$capability" -lineinfo \
    kernels/contrastive/host_check.cpp -o "$OUT/device_check" >"$OUT/device_check_build.txt" 2>&1 &
checker=$!
LINES_SHOWN=40 step build "$PYTHON" -m unimo_ds kernels build --arch "sm_$capability"
wait $checker || failed=1
step check "$OUT/device_check" 0 60
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$sanitizer" ]; then
    step memcheck "$sanitizer" --tool memcheck "$OUT/device_check" 0 8
    step racecheck "$sanitizer" --tool racecheck "$OUT/device_check" 0 8
fi
step tests "$PYTHON" -m pytest -q -x tests/kernels/test_contrastive_gpu.py
LINES_SHOWN=90 step benchmark "$PYTHON" benchmarks/kernels/contrastive.py ${INF_CL:+--inf-cl "$INF_CL"} \
    --json "$OUT/contrastive.json" --captured --chunks 4096x8192,8192x8192,16384x4096 --profile pairs:65536,cmcl:32768
exit $failed
