#!/usr/bin/env bash
# Submits an experiment to a Slurm cluster whose nodes have GPUs. At the time limit it saves and queues itself again.
#
#   experiments/launch/slurm.sh --run-dir DIR [options] NAME [options of experiments/train.py]
#
#   --run-dir DIR     a folder on a disk that all nodes share and can write
#   --nodes N         nodes (1)
#   --gpus N          GPUs of each node (8)
#   --cpus N          CPU cores for each GPU: they decode images (8)
#   --per gpu|node    one process for each GPU, or one for each node, which drives all of its GPUs (gpu)
#   --time T          the limit of one sitting, as sbatch takes it, such as 24:00:00 (the partition's own)
#   --save-seconds S  so long before the limit it is asked to save and end (180)
#   --partition P     where to queue (the cluster's own)
#   --account A       who pays (the cluster's own)
#   --sbatch OPTION   an option of sbatch without its dashes, such as qos=high or mem=0; may be repeated
#   --dry-run         print the command, submit nothing
#   --help            this text
#
# Environment: PYTHON, the interpreter, the same on all nodes (python). Output goes to NAME-JOB.log in this folder. A job
# that ends with 143 (the limit came, or SIGTERM) is queued again; scancel JOB ends it for good.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=options.sh
source "$here/options.sh"
train=$(dirname "$here")/train.py
python=${PYTHON:-python}
run_dir='' nodes=1 gpus=8 cpus=8 per=gpu time='' save_seconds=180 partition='' account='' dry_run=''
more=()

while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
        --dry-run) dry_run=yes && shift && continue ;;
        --nodes | --gpus | --cpus | --save-seconds) has_value "$@" && whole "$1" "$2" ;;
        --run-dir | --per | --time | --partition | --account) has_value "$@" ;;
        --sbatch)
            has_value "$@"
            more+=("--$2") && shift 2 && continue
            ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (--help lists them; options of train.py come after NAME)" ;;
        *) break ;;
    esac
    variable=${1#--} && printf -v "${variable//-/_}" %s "$2" && shift 2
done
[[ $run_dir ]] || fail "--run-dir is missing (--help explains it)"
[[ $per == gpu || $per == node ]] || fail "--per is '$per': it must be gpu or node"
(($#)) || fail "no experiment: name a file of experiments/configs"
name=$1
[[ $name =~ ^[A-Za-z0-9_]+$ && -f $(dirname "$train")/configs/$name.py ]] || fail "unknown experiment '$name'"

tasks=$gpus
if [[ $per == node ]]; then
    tasks=1 cpus=$((cpus * gpus))
fi

# sbatch hands the job to sh: single quotes are what every shell reads alike.
job="srun --cpus-per-task=$cpus"
for word in "$python" "$train" "$@" --run-dir "$run_dir" --coordinator auto; do
    [[ $word != *\'* ]] || fail "a quote in an option or a path: sbatch cannot pass it on"
    job+=" '$word'"
done
# shellcheck disable=SC2016 # expanded on the first node
job+='; status=$?; [ $status != 143 ] || scontrol requeue $SLURM_JOB_ID; exit $status'

submit=(
    sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--cpus-per-task=$cpus" "--gres=gpu:$gpus"
    ${time:+"--time=$time"} ${partition:+"--partition=$partition"} ${account:+"--account=$account"}
    "--signal=TERM@$save_seconds" --requeue --open-mode=append "--output=$name-%j.log"
    ${more[@]+"${more[@]}"} "--wrap=$job"
)
if [[ $dry_run ]]; then
    printf '%q ' "${submit[@]}" && echo
else
    "${submit[@]}"
fi
