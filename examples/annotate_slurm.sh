#!/bin/bash
# Annotate a corpus by an array of SLURM's, a GPU a task:  sbatch examples/annotate_slurm.sh CORPUS RUN OUT
# Each task annotates its part of the documents to OUT/part-I-of-N and goes on where it was interrupted. The parts of
# the ledgers add up to the corpus: jq -s 'map(select(.id)) | length' OUT/part-*/ledger.jsonl
#SBATCH --job-name=annotate
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=10
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
corpus=$1 run=$2 out=$3
srun megabert annotate "$corpus" --entities "$run" -o "$out" --format pubtator --on-error skip --resume \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
