#!/bin/bash
# One run by many machines: every array task works on the same folder and takes shards that nobody has.
#   sbatch --array=0-31 examples/cluster/slurm.sh corpus.jsonl speech_tokenizer_v2_25hz /shared/tokens
# A task that is preempted loses at most its present shard; requeued, it goes on with what is left.
#SBATCH --job-name=vokens-extract
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -eu
source_list=$1 model=$2 out=$3

exec vokens extract "$source_list" --model "$model" --out "$out" \
    --format parquet --device cuda --workers 15 \
    --metrics "/tmp/vokens-${SLURM_ARRAY_JOB_ID:-0}-${SLURM_ARRAY_TASK_ID:-0}.prom"
