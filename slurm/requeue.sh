# Sourced by run.sh and finetune.sh.
requeue_job() { # fails if the job is being requeued or was cancelled: Slurm would requeue it, against the wish of who cancelled it
    scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING' || return 1
    trap '' TERM # sent to this script by the requeue itself
    scontrol requeue "$SLURM_JOB_ID"
}
