#!/usr/bin/env bash
# Starts an experiment on every host of a Cloud TPU slice: clones the code, installs it, trains in the background.
#
#   experiments/launch/tpu_vm.sh --tpu TPU --zone ZONE --repo URL --commit SHA --run-dir DIR [options] NAME
#       [options of experiments/train.py]
#
#   --tpu TPU       name of the slice (and of the queued resource that --create makes)
#   --zone ZONE     where it is
#   --repo URL      what to clone; the hosts must be able to read it
#   --commit SHA    what to check out
#   --run-dir DIR   gs://BUCKET/FOLDER, or an absolute path on a disk that all hosts share and can write (NFS)
#   --project ID    the Google Cloud project (gcloud's own)
#   --create TYPE   first request the slice as a queued resource, such as v5litepod-16, and wait until it is active
#   --runtime V     its software (v2-alpha-tpuv5-lite)
#   --spot          cheaper, may be pre-empted
#   --dry-run       print the commands, run none
#   --help          this text
set -euo pipefail

tpu='' zone='' repo='' commit='' run_dir='' project='' create='' runtime=v2-alpha-tpuv5-lite spot='' dry_run=''
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
configs=$(dirname "$here")/configs
# shellcheck source-path=SCRIPTDIR source=options.sh
source "$here/options.sh"

run() {
    if [[ $dry_run ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
        --dry-run) dry_run=yes && shift && continue ;;
        --spot) spot=yes && shift && continue ;;
        --tpu | --zone | --repo | --commit | --run-dir | --project | --create | --runtime)
            has_value "$@"
            variable=${1#--} && printf -v "${variable//-/_}" %s "$2" && shift 2
            ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (--help lists them; options of train.py come after NAME)" ;;
        *) break ;;
    esac
done
for option in tpu zone repo commit run-dir; do
    variable=${option//-/_}
    [[ ${!variable} ]] || fail "--$option is missing (--help explains it)"
done
[[ $run_dir == /* || $run_dir == gs://?*/?* ]] ||
    fail "--run-dir is '$run_dir': it must be an absolute path on a mounted disk, or gs://BUCKET/FOLDER"
[[ -z $spot || $create ]] || fail "--spot goes with --create"
(($#)) || fail "no experiment: name a file of experiments/configs"
[[ $1 =~ ^[A-Za-z0-9_]+$ && -f $configs/$1.py ]] || fail "unknown experiment '$1'"
name=$1

place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")

if [[ $create ]]; then
    run gcloud compute tpus queued-resources create "$tpu" "${place[@]}" "--node-id=$tpu" \
        "--accelerator-type=$create" "--runtime-version=$runtime" ${spot:+--spot}
    describe=(gcloud compute tpus queued-resources describe "$tpu" "${place[@]}" '--format=value(state.state)')
    if [[ $dry_run ]]; then
        run "${describe[@]}"
    else
        while true; do
            state=$("${describe[@]}") || fail "the queued resource $tpu cannot be described"
            [[ $state != ACTIVE ]] || break
            [[ $state != FAILED && $state != SUSPENDED ]] || fail "the queued resource $tpu is $state"
            echo "$tpu: $state, waiting"
            sleep 30
        done
    fi
fi

on_every_host() { # command
    run gcloud compute tpus tpu-vm ssh "$tpu" "${place[@]}" --worker=all "--command=$1"
}

printf -v clone 'set -eu; test -d ge2mst_jax || git clone %q ge2mst_jax; cd ge2mst_jax; git fetch origin; ' "$repo"
printf -v checkout 'git checkout --detach %q; ' "$commit"
# The hosts' own Python is another version than the one that requirements.txt was tested with: uv brings it.
# shellcheck disable=SC2016 # expanded on the host
install='python3 -m pip install --user uv; uv=$HOME/.local/bin/uv; $uv venv --allow-existing --python 3.11 .venv; '
# shellcheck disable=SC2016
install+='export VIRTUAL_ENV=$PWD/.venv; $uv pip install -r requirements.txt '
# shellcheck disable=SC2016
install+='"jax[tpu]==$(grep ^jax== requirements.txt | cut -d= -f3)"; $uv pip install --no-deps --editable .'
on_every_host "$clone$checkout$install"

printf -v arguments ' %q' "$@" --run-dir "$run_dir" --coordinator auto
train="cd ge2mst_jax && { nohup .venv/bin/python experiments/train.py$arguments </dev/null >../$name.log 2>&1 & }"
train+=" && echo \$! >../$name.pid"
on_every_host "$train"

echo "follow it with:"
printf '%q ' gcloud compute tpus tpu-vm ssh "$tpu" "${place[@]}" --worker=0 "--command=tail -n 20 -f $name.log" && echo
