# Sourced by run.sh and finetune.sh.
requeue_job() { # fails where the job was cancelled or is being requeued already: it could be, against the wish of who cancelled it
    scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING' || return 1
    trap '' TERM # sent to this script by the requeue itself
    scontrol requeue "$SLURM_JOB_ID"
}
