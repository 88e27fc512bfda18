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
# Environment: PYTHON, the interpreter (python). SIGINT and SIGTERM reach every process, which saves and ends; the same
# command goes on. If a process fails, the others are ended, and its status is this script's.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
train=$(dirname "$here")/train.py
python=${PYTHON:-python}
processes=2 devices=1 logs='' port='' dry_run=''
grace_seconds=10

fail() {
    echo "local.sh: error: $*" >&2
    exit 2
}

whole() { # option, value
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$2': it must be a whole number, at least 1"
}

while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit ;;
        --dry-run) dry_run=yes && shift && continue ;;
        --processes | --devices | --logs | --port) (($# > 1)) || fail "$1 needs a value" ;;
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
declare -A number=() # by process id
end_all() {          # signal
    local pid
    for pid in "${!number[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'end_all TERM' INT TERM
set -m # own process groups: a Ctrl-C reaches the processes once, through the trap
for ((i = 0; i < processes; i++)); do
    command_of "$i"
    if ((i == 0)); then
        "${command[@]}" </dev/null &
    else
        "${command[@]}" </dev/null >"$logs/process-$i.log" 2>&1 &
    fi
    number[$!]=$i
done

failed=0 killer=''
while ((${#number[@]})); do
    ended='' status=0
    wait -n -p ended "${!number[@]}" 2>/dev/null || status=$?
    [[ ${ended:-} ]] || continue # a signal interrupted the waiting
    which=${number[$ended]}
    unset "number[$ended]"
    if ((status && !failed)); then
        failed=$status
        echo "local.sh: process $which ended with status $status, so the others are ended (logs: $logs)" >&2
        end_all TERM
        (sleep "$grace_seconds" && end_all KILL) &
        killer=$!
    fi
done
[[ -z $killer ]] || kill -- -"$killer" 2>/dev/null || true
exit "$failed"
