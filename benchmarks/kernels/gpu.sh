#!/bin/sh
# What the kernels need a GPU for: build, memory and races, tests, benchmarks. Parts, each of two to four minutes; default, all:
#     PYTHON=python3 OUT=folder INF_CL=checkout/of/Inf-CLIP benchmarks/kernels/gpu.sh attention elementwise contrastive
# Kernels that no GPU has measured yet are taken too.
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
INF_CL=${INF_CL:-}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
UNIMO_KERNELS=untried
export PYTHONPATH UNIMO_KERNELS
mkdir -p "$OUT"
capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
failed=0

step() { # name, lines to show, command...: output to a file, its end to the terminal
    name=$1 shown=$2 began=$(date +%s)
    shift 2
    "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    tail -n "$shown" "$OUT/$name.txt"
    echo "== $name: status $status, $(($(date +%s) - began)) s"
    [ $status -eq 0 ] || failed=1
    return $status
}

sanitized() { # name, command...: under both tools at once
    of=$1
    shift
    [ -x "$sanitizer" ] || return 0
    step "memcheck.$of" 2 timeout 100 "$sanitizer" --tool memcheck --error-exitcode 3 "$@" &
    step "racecheck.$of" 2 timeout 100 "$sanitizer" --tool racecheck --error-exitcode 3 "$@"
    wait $! || failed=1
}

compiled_check() { # kernel: its random cases on the GPU, then under the tools
    step "build.$1" 3 "$nvcc" -x cu -O1 -std=c++17 "-gencode=arch=compute_$capability,code=sm_$capability" -lineinfo \
        "kernels/$1/host_check.cpp" -o "$OUT/check_$1" || return
    step "check.$1" 3 "$OUT/check_$1" 0 60
    sanitized "$1" "$OUT/check_$1" 0 8
}

attention() {
    step test_attention 3 "$PYTHON" -m pytest -q -x tests/kernels/test_attention_gpu.py
    sanitized attention "$PYTHON" -m benchmarks.kernels.attention_once --mix unimo --scale 0.15 --forward bulk
    step attention 60 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes texts_128,texts_256,unimo,repeated --contenders "ours native,Flash,cuDNN" --json "$OUT/attention.json"
    step attention_ours 28 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes texts_512,prefix_512,texts_2048,prefix_2048,unimo_shares,shared --contenders "ours native" --json "$OUT/attention_ours.json"
}

elementwise() {
    compiled_check dropout_norm
    compiled_check bias_gelu
    compiled_check cross_entropy
    step test_elementwise 3 "$PYTHON" -m pytest -q -x tests/kernels/test_dropout_norm_gpu.py tests/kernels/test_bias_gelu_gpu.py \
        tests/kernels/test_cross_entropy_gpu.py
    step elementwise 20 "$PYTHON" -m benchmarks.kernels.elementwise --device cuda --dtype bfloat16 --compile \
        --json "$OUT/elementwise.json"
}

contrastive() {
    compiled_check contrastive
    step test_contrastive 3 "$PYTHON" -m pytest -q -x tests/kernels/test_contrastive_gpu.py
    step contrastive 90 "$PYTHON" benchmarks/kernels/contrastive.py ${INF_CL:+--inf-cl "$INF_CL"} --captured \
        --tasks pairs_one_way:65536,pairs:32768,pairs:65536,cmcl:32768 --chunks 4096x8192,8192x8192 \
        --profile pairs:32768,cmcl:32768 --json "$OUT/contrastive.json"
}

step build 60 "$PYTHON" -m unimo_ds kernels build --arch "sm_$capability" || exit 1
for part in ${*:-attention elementwise contrastive}; do
    case $part in
    attention | elementwise | contrastive) $part ;;
    *) echo "gpu.sh: there is no part $part; parts: attention, elementwise, contrastive" >&2 && exit 2 ;;
    esac
done
exit $failed
