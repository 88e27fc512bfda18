#!/usr/bin/env bash
# Submits an experiment to a GKE cluster with TPUs, as a workload of xpk (pip install xpk).
#
#   experiments/launch/gke_xpk.sh --cluster C --project ID --zone ZONE --workload W --tpu-type TYPE --repo URL
#       --commit SHA --run-dir DIR [options] NAME [options of experiments/train.py]
#
#   --cluster C       the cluster, made by `xpk cluster create`
#   --project ID      its Google Cloud project
#   --zone ZONE       where it is
#   --workload W      name of the job: small letters, digits and hyphens
#   --tpu-type TYPE   such as v5litepod-16
#   --repo URL        what to clone; the pods must be able to read it
#   --commit SHA      what to check out
#   --run-dir DIR     gs://BUCKET/FOLDER, or an absolute path in storage that all pods share and can write
#   --storage S       storage attached to the cluster by `xpk storage` that holds --run-dir; may be repeated
#   --restarts N      how often a job is started again that was evicted, stopped by a signal (it exits 130 or 143) or
#                     killed (10); not one that exits 1 or 2, which would fail again
#   --image I         container image with Python 3.11 and git (python:3.11)
#   --dry-run         print the commands, run none
#   --help            this text
set -euo pipefail

cluster='' project='' zone='' workload='' tpu_type='' repo='' commit='' run_dir='' restarts=10 image=python:3.11
storage=() dry_run=''
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
configs=$(dirname "$here")/configs
# shellcheck source-path=SCRIPTDIR source=options.sh
source "$here/options.sh"

while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
        --dry-run) dry_run=yes && shift ;;
        --storage)
            has_value "$@"
            storage+=("--storage=$2") && shift 2
            ;;
        --cluster | --project | --zone | --workload | --tpu-type | --repo | --commit | --run-dir | --restarts | --image)
            has_value "$@"
            variable=${1#--} && printf -v "${variable//-/_}" %s "$2" && shift 2
            ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (--help lists them; options of train.py come after NAME)" ;;
        *) break ;;
    esac
done
for option in cluster project zone workload tpu-type repo commit run-dir; do
    variable=${option//-/_}
    [[ ${!variable} ]] || fail "--$option is missing (--help explains it)"
done
pattern='^[a-z]([a-z0-9-]*[a-z0-9])?$' # bash 3.2 takes parentheses from a variable alone
[[ $workload =~ $pattern ]] ||
    fail "--workload is '$workload': small letters, digits and hyphens, a letter first"
[[ $restarts =~ ^[0-9]{1,4}$ ]] || fail "--restarts is '$restarts': it must be a whole number, 0 to 9999"
[[ $run_dir == /* || $run_dir == gs://?*/?* ]] ||
    fail "--run-dir is '$run_dir': it must be an absolute path in mounted storage, or gs://BUCKET/FOLDER"
(($#)) || fail "no experiment: name a file of experiments/configs"
[[ $1 =~ ^[A-Za-z0-9_]+$ && -f $configs/$1.py ]] || fail "unknown experiment '$1'"

# No single quotes in it: xpk puts it between some. `exec` lets a SIGTERM reach the training.
printf -v clone 'git clone %q ge2mst_jax && cd ge2mst_jax && git checkout --detach %q' "$repo" "$commit"
# shellcheck disable=SC2016 # expanded in the pod
install='pip install -r requirements.txt "jax[tpu]==$(grep ^jax== requirements.txt | cut -d= -f3)"'
install+=' && pip install --no-deps --editable .'
printf -v train ' %q' exec python experiments/train.py "$@" --run-dir "$run_dir" --coordinator auto
command="$clone && $install &&$train"
[[ $command != *\'* ]] || fail "a quote in an option: xpk cannot pass it on"

create=(
    xpk workload create "--cluster=$cluster" "--project=$project" "--zone=$zone" "--workload=$workload"
    "--tpu-type=$tpu_type" --num-slices=1 "--docker-image=$image" "--max-restarts=$restarts"
    "--restart-on-exit-codes=130,143" ${storage[@]+"${storage[@]}"} "--command=$command"
)
if [[ $dry_run ]]; then
    printf '%q ' "${create[@]}" && echo
else
    "${create[@]}"
fi
