#!/bin/sh
# What needs a GPU: tests, checkers, benchmarks, the training step, a run. Parts; default, all of them in this order:
#     PYTHON=python3 OUT=folder LIMIT=540 benchmarks/kernels/gpu.sh checks step training contrastive elementwise attention
# `checks` runs everything that is not timed at once: tests (pytest -m gpu), random cases, memory and race checkers.
# Every step is a process of its own with a time limit, and goes on where an earlier one failed; what they print is in OUT/log.txt, rows
# in OUT/*.json as they are measured. LIMIT: seconds of all; what they do not reach is named. INF_CL: a checkout of Inf-CLIP, a peer.
# CHECKS: a folder of programs built before (check_contrastive ... by the command below).
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
LIMIT=${LIMIT:-540}
INF_CL=${INF_CL:-}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1
PARTS=${*:-checks step training contrastive elementwise attention}
for part in $PARTS; do
    case $part in
    checks | step | training | contrastive | elementwise | attention) ;;
    *) echo "gpu.sh: there is no part $part; parts: checks step training contrastive elementwise attention" >&2 && exit 2 ;;
    esac
done
mkdir -p "$OUT"
start=$(date +%s)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
programs=${CHECKS:-$scratch}
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

build() { # the library; it is there at once where it was built before
    step build 240 0 "$PYTHON" -m unimo_ds kernels build --arch "sm_$capability"
}

program() { # a kernel: random cases, and some of them under both checkers
    [ -x "$programs/check_$1" ] || step "compile.$1" 150 0 "$nvcc" -x cu -O1 -std=c++17 \
        "-gencode=arch=compute_$capability,code=sm_$capability" -lineinfo "kernels/$1/host_check.cpp" -o "$programs/check_$1" || return 1
    step "check.$1" 60 1 "$programs/check_$1" 0 60
    sanitized "$1" "$programs/check_$1" 0 8
}

sanitized() { # name, command...
    [ -x "$sanitizer" ] || return 0
    of=$1
    shift
    step "memcheck.$of" 120 2 "$sanitizer" --tool memcheck --error-exitcode 3 "$@"
    step "racecheck.$of" 120 2 "$sanitizer" --tool racecheck --error-exitcode 3 "$@"
}

tests() { # name, files and options of pytest
    of=$1
    shift
    step "test_$of" 240 12 "$PYTHON" -m pytest -m gpu -vv --durations 5 "$@"
}

checks() {
    for kernel in dropout_norm bias_gelu cross_entropy contrastive; do
        program "$kernel" &
    done
    sanitized attention "$PYTHON" -m benchmarks.kernels.attention_once --mix unimo --scale 0.15 &
    tests kernels tests/kernels tests/utils --numprocesses 3 --dist load &
    tests model tests/gpu/test_model.py &
    tests engine tests/gpu/test_engine.py &
    tests train tests/gpu/test_train.py &
    tests second tests/second_device &
    wait
}

step_of_training() { # the usual way with its head on masked positions: with a head on all it does not fit 80 GB
    step step 150 6 "$PYTHON" -m benchmarks.step --device cuda --engine plain --samples 112 --rounds 8 --memory-samples 0 \
        --attention native --contenders ours,usual-masked-head --profile --json "$OUT/step.json"
    step hard_negatives 100 12 env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "$PYTHON" -m benchmarks.hard_negatives --device cuda \
        --layers 12 --pairs 64 --rounds 7 --json "$OUT/hard_negatives.json"
}

training() { # real runs of 60 steps, with kernels and without
    step corpus 60 1 "$PYTHON" -m unimo_ds prepare demo --output "$scratch/demo"
    for kernels in on off; do
        step "train_$kernels" 100 5 env UNIMO_KERNELS=$kernels "$PYTHON" -m unimo_ds.train --recipe single_gpu --data "$scratch/demo" \
            --run-dir "$scratch/run_$kernels" --set schedule.total_steps=60 --set schedule.warmup_steps=10 \
            --set batch.global_samples=512 --set batch.micro_batch_tokens=65536 --set evaluation.every_steps=0 \
            --set logging.every_steps=5 --set checkpoint.every_steps=1000 --set data.num_workers=8
        cp "$scratch/run_$kernels/metrics.jsonl" "$OUT/train_$kernels.jsonl"
    done
}

contrastive() {
    step contrastive 150 24 "$PYTHON" -m benchmarks.kernels.contrastive ${INF_CL:+--inf-cl "$INF_CL"} --captured \
        --tasks pairs_one_way:65536,pairs:32768,pairs:65536,cmcl:32768 --chunks 4096x4096,4096x8192,8192x8192 \
        --profile pairs:32768,cmcl:32768 --json "$OUT/contrastive.json"
}

elementwise() {
    set -- "$PYTHON" -m benchmarks.kernels.elementwise --device cuda --dtype bfloat16 --json "$OUT/elementwise.json"
    step elementwise 120 14 "$@" --compile || step elementwise_eager 60 14 "$@"  # torch.compile wants a C compiler
}

attention() {
    step attention 100 20 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes unimo,texts_128,texts_256,repeated --contenders "ours native,Flash,cuDNN" --json "$OUT/attention.json"
    step attention_ours 80 14 "$PYTHON" -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --rounds 5 \
        --mixes texts_512,prefix_512,texts_2048,prefix_2048,unimo_shares,shared --contenders "ours native" --json "$OUT/attention_ours.json"
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
