#!/bin/bash
# Many rows on many nodes of one kind: what all need first, in one job; then one job a stage, as many at a time as there
# are free nodes; what people read at the end, whatever became of the rest. Options of sbatch stand after it:
#   cluster/many.sh --partition=a100 --gres=gpu:8
# Each job has its node alone, and `dvc --wait-for-lock` writes dvc.lock one at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
stages=$(dvc stage list --name-only)
job() { # DEPENDENCY COMMAND...: the number of the job that waits for it
  local after=$1
  shift
  sbatch --parsable ${after:+--dependency="$after"} ${nodes:+--nodes="$nodes"} "${options[@]}" cluster/slurm.sbatch "$@" | cut -d';' -f1
}
options=("$@")

nodes=1
mapfile -t first < <(grep -Ev '^(check|bench|render)' <<<"$stages")
before=$(job "" dvc repro "${first[@]}")
echo "$before: ${first[*]}"
checks=$before
for kind in check bench; do
  jobs=
  for stage in $(grep "^${kind}_" <<<"$stages"); do
    case $stage in *_ring@*) nodes= ;; *) nodes=1 ;; esac
    number=$(job "afterany:$checks" dvc --wait-for-lock repro --single-item "$stage")
    echo "$number: $stage"
    jobs+=:$number
  done
  checks=${jobs#:}
done
nodes=1
number=$(job "afterany:$checks" dvc --wait-for-lock repro --single-item "$(grep '^render' <<<"$stages")")
echo "$number: render"
