#!/bin/bash
# The whole paper, from raw corpora to its tables, as jobs that depend on each other. docs/reproduce.md says where files go.
#
#   bash slurm/reproduce.sh base                                      on 4 nodes of 8 V100
#   bash slurm/reproduce.sh large                                     on 8
#   bash slurm/reproduce.sh base --set schedule.total_steps=1000      arguments go to unimo_ds/train.py
#   RUN_DIR=runs/second SEEDS=5 bash slurm/reproduce.sh base          also CORPUS and HELD_OUT (files), TASKS (a folder)
#
# Finished steps report this in a minute. If a job fails, those that depend on it are cancelled: fix it, and run this again.
cd "$(dirname "$0")/.." || exit 2
size=${1:-}
case $size in
base) recipe=base_32xv100 ;;
large) recipe=large_64xv100 ;;
*) echo "give base or large: bash slurm/reproduce.sh base" >&2 && exit 2 ;;
esac
shift
PREPARE_OPTIONS=() # of sbatch, like the next three
TRAIN_OPTIONS=()
EVALUATE_OPTIONS=()
FINETUNE_OPTIONS=()
PREPARE_ARGUMENTS=() # of `unimo prepare all`
# shellcheck source=environment.sh
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" || exit 2
set -e # not before: the environment file's commands may fail
RUN_DIR=${RUN_DIR:-runs/$recipe}
export RUN_DIR=${RUN_DIR%/}
tuned=$RUN_DIR-finetuned
corpus=${CORPUS:-slurm/corpus.toml}
held_out=${HELD_OUT:-slurm/held_out.toml}
tasks=${TASKS:-data/tasks}

submit() { # job that must succeed first, or nothing; then the arguments of sbatch
    local first=${1%;*} # without the cluster's name, if there are several
    shift
    sbatch --parsable ${first:+--dependency=afterok:$first --kill-on-invalid-dep=yes} "$@"
}

train_data=$(submit "" "${PREPARE_OPTIONS[@]}" slurm/prepare.sh all --config "$corpus" "${PREPARE_ARGUMENTS[@]}")
held_out_data=$(submit "$train_data" "${PREPARE_OPTIONS[@]}" slurm/prepare.sh all --config "$held_out" "${PREPARE_ARGUMENTS[@]}")
training=$(submit "$held_out_data" "${TRAIN_OPTIONS[@]}" "slurm/$size.sh" "$@")
zero_shot=$(submit "$training" "${EVALUATE_OPTIONS[@]}" slurm/evaluate.sh zero-shot --checkpoint "$RUN_DIR" --json "$tuned/zero_shot.json")
echo "corpora $train_data, held out $held_out_data, training $training, zero-shot $zero_shot"
for data in "$tasks"/*/; do
    task=$(basename "$data")
    [ "$task" = "*" ] && echo "no tasks in $tasks: none will be fine-tuned" && break
    words=("$task" --checkpoint "$RUN_DIR" --data "$tasks/$task" --run-dir "$tuned/$task" --seeds "${SEEDS:-3}")
    [ "$size" = large ] && words+=(--recipe large)
    job=$(submit "$training" "${FINETUNE_OPTIONS[@]}" slurm/finetune.sh "${words[@]}")
    echo "$task $job"
done
echo when all are done: unimo report --ours "$size=$tuned" --markdown "$tuned/tables.md"
