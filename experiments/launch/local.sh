#!/usr/bin/env bash
# Runs an experiment as several processes on this host's CPU: what a pod does, on one machine.
#
#   experiments/launch/local.sh [options] NAME [options of experiments/train.py]
#
#   --processes N   processes (2)
#   --devices N     virtual devices a process (1)
#   --logs DIR      output of processes 1, 2, ...; process 0 writes to the terminal (runs/NAME.logs)
#   --port N        of process 0 (a free one)
#   --dry-run       print the commands, run none
#   --help          this text
#
# Environment: PYTHON, the interpreter (python). SIGINT and SIGTERM reach every process, which saves and ends with status
# 130 or 143; the same command goes on, and a second SIGINT ends them at once. If a process fails, the others are ended.
# The first status that is not 0 is this script's.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=options.sh
source "$here/options.sh"
train=$(dirname "$here")/train.py
python=${PYTHON:-python}
processes=2 devices=1 logs='' port='' dry_run=''
grace_seconds=10

while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
        --dry-run) dry_run=yes && shift && continue ;;
        --processes | --devices | --logs | --port) has_value "$@" ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (--help lists them; options of train.py come after NAME)" ;;
        *) break ;;
    esac
    case $1 in
        --processes) whole "$1" "$2" && processes=$2 ;;
        --devices) whole "$1" "$2" && devices=$2 ;;
        --port) whole "$1" "$2" && port=$2 ;;
        --logs) logs=$2 ;;
    esac
    shift 2
done
(($#)) || fail "no experiment: name a file of experiments/configs"
name=$1
[[ $name =~ ^[A-Za-z0-9_]+$ && -f $(dirname "$train")/configs/$name.py ]] || fail "unknown experiment '$name'"
logs=${logs:-runs/$name.logs}

if [[ -z $port ]]; then
    port=PORT
    find_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
    [[ $dry_run ]] || port=$("$python" -c "$find_port")
fi

command_of() { # process; sets `command`
    command=(
        env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$devices"
        JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$processes" JAX_PROCESS_ID="$1"
        "$python" "$train" "${arguments[@]}"
    )
}

arguments=("$@")
if [[ $dry_run ]]; then
    for ((i = 0; i < processes; i++)); do
        command_of "$i"
        printf '%q ' "${command[@]}"
        ((i == 0)) && echo '&' || printf '>%q 2>&1 &\n' "$logs/process-$i.log"
    done
    exit
fi

mkdir -p "$logs"
pids=() asked=''
end_all() { # signal
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do [[ -z $pid ]] || kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'asked=INT && end_all INT' INT
trap 'asked=TERM && end_all TERM' TERM
set -m # own process groups: a Ctrl-C reaches the processes once, through the trap
for ((i = 0; i < processes; i++)); do
    command_of "$i"
    if ((i == 0)); then
        "${command[@]}" </dev/null &
    else
        "${command[@]}" </dev/null >"$logs/process-$i.log" 2>&1 &
    fi
    pids[i]=$!
done
set +m
[[ -z $asked ]] || end_all "$asked" # some were started after the signal

# bash 3.2, which macOS has, cannot wait for whichever process ends first.
left=$processes first=0 deadline=''
while ((left)); do
    for ((i = 0; i < processes; i++)); do
        if [[ -z ${pids[i]} ]] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
        status=0
        wait "${pids[i]}" || status=$?
        pids[i]='' left=$((left - 1))
        if ((status && !first)); then
            first=$status
            [[ -z $asked ]] || continue
            echo "local.sh: process $i ended with status $status, so the others are ended (logs: $logs)" >&2
            end_all TERM
            ((status == 130 || status == 143)) || deadline=$((SECONDS + grace_seconds))
        fi
    done
    [[ -z $deadline ]] || ((SECONDS < deadline)) || end_all KILL
    ((!left)) || sleep 0.1
done
exit "$first"
