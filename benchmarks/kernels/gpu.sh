#!/bin/sh
# What the kernels need a GPU for: build, tests, benchmarks, memory and races. Parts, of one to two minutes each; default, all:
#     PYTHON=python3 OUT=folder LIMIT=540 INF_CL=checkout/of/Inf-CLIP benchmarks/kernels/gpu.sh elementwise contrastive attention step bulk
# Every step is a process of its own with a time limit, and goes on where an earlier one failed; what they print is in OUT/log.txt, rows
# in OUT/*.json as they are measured. LIMIT: seconds of all; what they do not reach is named. The kernel that no GPU has run is last.
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
LIMIT=${LIMIT:-540}
INF_CL=${INF_CL:-}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1
PARTS=${*:-elementwise contrastive attention step bulk}
for part in $PARTS; do
    case $part in
    elementwise | contrastive | attention | step | bulk) ;;
    *) echo "gpu.sh: there is no part $part; parts: elementwise contrastive attention step bulk" >&2 && exit 2 ;;
    esac
done
mkdir -p "$OUT"
start=$(date +%s)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: >"$OUT/log.txt"
capability=${CAPABILITY:-$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')} || exit 1
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

step() { # name, most seconds, lines to show, command...: the end of its output to the terminal, all of it to the log
    name=$1 seconds=$2 shown=$3 began=$(date +%s)
    shift 3
    left=$((LIMIT - began + start))
    [ "$seconds" -le $left ] || seconds=$left
    if [ "$seconds" -lt 5 ]; then
        echo "== $name: left out, the $LIMIT s are over" | tee -a "$scratch/summary"
        return 1
    fi
    timeout -k 5 "$seconds" "$@" >"$scratch/$name.txt" 2>&1
    status=$?
    [ $status -eq 0 ] || [ "$shown" -ge 15 ] || shown=15
    line="== $name: status $status, $(($(date +%s) - began)) s"
    tail -n "$shown" "$scratch/$name.txt"
    echo "$line" | tee -a "$scratch/summary"
    { echo "$line: $*" && cat "$scratch/$name.txt"; } >>"$OUT/log.txt"
    return $status
}

build() { # the library and the programs of random cases, all at once
    for kernel in dropout_norm bias_gelu cross_entropy contrastive; do
        step "build.$kernel" 150 0 "$nvcc" -x cu -O1 -std=c++17 "-gencode=arch=compute_$capability,code=sm_$capability" -lineinfo \
            "kernels/$kernel/host_check.cpp" -o "$scratch/check_$kernel" &
    done
    step build 240 0 "$PYTHON" -m unimo_ds kernels build --arch "sm_$capability"
    status=$?
    wait
    return $status
}

sanitized() { # name, command...: under both tools at once
    of=$1
    shift
    [ -x "$sanitizer" ] || return 0
    step "memcheck.$of" 60 2 "$sanitizer" --tool memcheck --error-exitcode 3 "$@" &
    step "racecheck.$of" 60 2 "$sanitizer" --tool racecheck --error-exitcode 3 "$@" &
}

tests() { # name, file..., options of pytest: as far as the first that fails
    of=$1
    shift
    step "test_$of" 120 3 "$PYTHON" -m pytest -vv -x "$@"
}

elementwise() {
    for kernel in dropout_norm bias_gelu cross_entropy; do
        step "check.$kernel" 30 1 "$scratch/check_$kernel" 0 60
    done
    tests elementwise tests/kernels/test_dropout_norm_gpu.py tests/kernels/test_bias_gelu_gpu.py tests/kernels/test_cross_entropy_gpu.py \
        tests/utils/test_moving.py
    set -- "$PYTHON" -m benchmarks.kernels.elementwise --device cuda --dtype bfloat16 --json "$OUT/elementwise.json"
    step elementwise 120 14 "$@" --compile || step elementwise_eager 60 14 "$@"  # torch.compile wants a C compiler
    for kernel in dropout_norm bias_gelu cross_entropy; do
        sanitized "$kernel" "$scratch/check_$kernel" 0 8
    done
    wait
}

contrastive() {
    step check.contrastive 30 1 "$scratch/check_contrastive" 0 60
    tests contrastive tests/kernels/test_contrastive_gpu.py
    step contrastive 150 24 "$PYTHON" -m benchmarks.kernels.contrastive ${INF_CL:+--inf-cl "$INF_CL"} --captured \
        --tasks pairs_one_way:65536,pairs:32768,pairs:65536,cmcl:32768 --chunks 4096x4096,4096x8192,8192x8192 \
        --profile pairs:32768,cmcl:32768 --json "$OUT/contrastive.json"
    sanitized contrastive "$scratch/check_contrastive" 0 8
    wait
}

attention() {
    tests attention tests/kernels/test_attention_gpu.py -k "not bulk and not whole_tiles"
    step attention 100 20 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes unimo,texts_128,texts_256,repeated --contenders "ours native,Flash,cuDNN" --json "$OUT/attention.json"
    step attention_ours 80 14 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes texts_512,prefix_512,texts_2048,prefix_2048,unimo_shares,shared --contenders "ours native" --json "$OUT/attention_ours.json"
    sanitized attention "$PYTHON" -m benchmarks.kernels.attention_once --mix unimo --scale 0.15
    wait
}

step_of_training() { # the usual way with its head on masked positions: with a head on all it does not fit 80 GB
    step step 150 6 "$PYTHON" -m benchmarks.step --device cuda --engine plain --samples 112 --rounds 8 --memory-samples 0 \
        --attention native --contenders ours,usual-masked-head --profile --json "$OUT/step.json"
    step hard_negatives 100 12 env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "$PYTHON" -m benchmarks.hard_negatives --device cuda \
        --layers 12 --pairs 64 --rounds 7 --json "$OUT/hard_negatives.json"
}

bulk() { # it is timed where a test fails (status 1), not where one hangs or the GPU reports an error
    step bulk_once 40 3 "$PYTHON" -m benchmarks.kernels.attention_once --mix texts_256 --scale 0.1 --forward bulk &&
        { tests bulk tests/kernels/test_attention_gpu.py -k "bulk or whole_tiles" || [ $? -eq 1 ]; } &&
        step bulk 100 30 env UNIMO_KERNELS=untried "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
            --mixes texts_256,unimo,texts_128,texts_512,prefix_512 --contenders "ours native,cuDNN" --json "$OUT/bulk.json"
    sanitized bulk "$PYTHON" -m benchmarks.kernels.attention_once --mix unimo --scale 0.15 --forward bulk
    wait
}

build || { tail -n 30 "$scratch/build.txt" && exit 1; }
for part in $PARTS; do
    case $part in
    step) step_of_training ;;
    *) $part ;;
    esac
done
echo "== in short, after $(($(date +%s) - start)) s:" && cat "$scratch/summary"
! grep -q -v ': status 0,' "$scratch/summary"
