"""The launchers: what they would run, what they refuse, and several processes on this host."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = ("local.sh", "tpu_vm.sh", "gke_xpk.sh", "slurm.sh")
#: What they share; nobody runs it.
SHARED = "options.sh"
TPU_VM = "--tpu slice --zone zone-a --repo https://host/code.git --commit abc123 --run-dir /mnt/runs/s".split()
GKE = (
    "--cluster c --project p --zone zone-a --workload job-1 --tpu-type v5litepod-16 --repo https://host/code.git "
    "--commit abc123 --run-dir /mnt/runs/s"
).split()
SLURM = ["--run-dir", "/mnt/runs/s"]


#: A bash 3.2, which macOS has; where there is one, every test of the launchers runs under it.
BASH = os.environ.get("BASH_3_2")


@pytest.fixture(autouse=True)
def usual_python(monkeypatch):
    """`make PYTHON=...` hands its interpreter on, which the launchers would take."""
    monkeypatch.delenv("PYTHON", raising=False)


def launch(script, *arguments, **options):
    command = [*([BASH] if BASH else []), str(LAUNCH / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, **options)


def dry_run(script, *arguments, cwd):
    """The commands it prints, as words; it must leave no trace."""
    found = launch(script, "--dry-run", *arguments, cwd=cwd)
    assert (found.returncode, found.stderr) == (0, "")
    assert not list(cwd.iterdir())
    return [shlex.split(line) for line in found.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert [s.name for s in scripts] == sorted((*SCRIPTS, SHARED))
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_option(script):
    found = launch(script, "--help")
    assert found.returncode == 0
    text = (LAUNCH / script).read_text()
    for option in re.findall(r"--[a-z-]+(?=[ )|].*\)|\))", text.partition("while")[2].partition("done")[0]):
        assert option in found.stdout
    assert "set -euo pipefail" in text
    assert "set -euo pipefail" not in found.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("local.sh", [], "no experiment"),
        ("local.sh", ["nope"], "unknown experiment 'nope'"),
        ("local.sh", ["../configs/digits"], "unknown experiment '../configs/digits'"),
        ("local.sh", ["--processes", "0", "digits"], "--processes is '0': it must be a whole number, 1 to 65535"),
        ("local.sh", ["--port", "70000", "digits"], "--port is '70000': it must be a whole number, 1 to 65535"),
        ("local.sh", ["--processes", "9" * 30, "digits"], "--processes is '999999999999999999999999999999'"),
        ("local.sh", ["--logs", "--processes", "3", "digits"], "--logs needs a value"),
        ("local.sh", ["--logs", "", "digits"], "--logs needs a value"),
        ("local.sh", ["--"], "no experiment"),
        ("local.sh", ["--devices"], "--devices needs a value"),
        ("local.sh", ["--steps", "3", "digits"], "unknown option --steps"),
        ("tpu_vm.sh", ["digits"], "--tpu is missing"),
        ("tpu_vm.sh", ["--tpu", "--zone", "z", "digits"], "--tpu needs a value"),
        ("tpu_vm.sh", [*TPU_VM, "--run-dir", "-x", "digits"], "--run-dir needs a value"),
        ("tpu_vm.sh", [*TPU_VM, "nope"], "unknown experiment 'nope'"),
        ("tpu_vm.sh", [*TPU_VM, "--run-dir", "gs://bucket", "digits"], "--run-dir is 'gs://bucket': it must be an abs"),
        ("tpu_vm.sh", [*TPU_VM, "--run-dir", "s3://bucket/run", "digits"], "--run-dir is 's3://bucket/run'"),
        ("tpu_vm.sh", [*TPU_VM, "--spot", "digits"], "--spot goes with --create"),
        ("gke_xpk.sh", ["digits"], "--cluster is missing"),
        ("gke_xpk.sh", GKE, "no experiment"),
        ("gke_xpk.sh", [*GKE, "--storage", "--image", "i", "digits"], "--storage needs a value"),
        ("gke_xpk.sh", [*GKE, "--restarts", "1" * 30, "digits"], "--restarts is '1"),
        ("gke_xpk.sh", [*GKE, "--workload", "Job_1", "digits"], "--workload is 'Job_1'"),
        (
            "gke_xpk.sh",
            [*GKE, "--run-dir", "gs://bucket", "digits"],
            "--run-dir is 'gs://bucket': it must be an absolu",
        ),
        ("gke_xpk.sh", [*GKE, "digits", "--data-dir", "it's"], "a quote in an option"),
        ("slurm.sh", ["digits"], "--run-dir is missing"),
        ("slurm.sh", SLURM, "no experiment"),
        ("slurm.sh", [*SLURM, "nope"], "unknown experiment 'nope'"),
        ("slurm.sh", [*SLURM, "--nodes", "two", "digits"], "--nodes is 'two': it must be a whole number, 1 to 65535"),
        ("slurm.sh", [*SLURM, "--gpus", "0", "digits"], "--gpus is '0': it must be a whole number, 1 to 65535"),
        ("slurm.sh", [*SLURM, "--per", "host", "digits"], "--per is 'host': it must be gpu or node"),
        ("slurm.sh", [*SLURM, "--time", "--nodes", "2", "digits"], "--time needs a value"),
        ("slurm.sh", [*SLURM, "--sbatch", "--qos=high", "digits"], "--sbatch needs a value"),
        ("slurm.sh", [*SLURM, "--steps", "3", "digits"], "unknown option --steps"),
        ("slurm.sh", [*SLURM, "digits", "--data-dir", "it's"], "a quote in an option"),
    ],
)
def test_wrong_input_is_refused_in_one_line(script, arguments, says, tmp_path):
    found = launch(script, *arguments, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"{script}: error: {says}" if "'s" not in says else f"{script}: error: ")
    assert len(found.stderr.splitlines()) == 1


#: What bash 3.2 does not have, or takes otherwise.
NEWER = {
    r"\bdeclare -[A-Za-z]*[Agnlu]|\blocal -[Anlu]": "associative arrays, name references, case",
    r"\bwait -[npf]": "waiting for any process",
    r"\$\{[^}]*@[QEPAKak]\}": "transformations",
    r"\$\{[^}]*(,,?|\^\^?)\}": "case of a value",
    r"\b(mapfile|readarray|coproc)\b": "built-ins",
    r"&>>|\|&|;;?&": "redirections and case ends",
    r"=~ [^$'\"]*\(": "parentheses in a regular expression that is no variable",
    r"\$\{?(BASHPID|EPOCH\w+|SRANDOM)|%\([^)]*\)T": "variables and times",
    r"(?<!\+)\"\$\{(storage|pids|more)\[@\]\}\"": "an empty array under set -u",
    r"\[-\d+\]": "negative indices",
    r"printf -v \S*\[": "printf into an array",
    r"\b(realpath|readlink -f|timeout|tac)\b|\bsed (-i|-r)|[^;]\}'": "GNU's tools",
    r"(?<!CDPATH='' )\bcd \"": "CDPATH",
}


@pytest.mark.parametrize("script", (*SCRIPTS, SHARED))
def test_nothing_newer_than_bash_3_2(script):
    lines = (LAUNCH / script).read_text().splitlines()
    code = [line.partition(" # ")[0] for line in lines if not line.lstrip().startswith("#")]
    found = [(line, what) for line in code for pattern, what in NEWER.items() if re.search(pattern, line)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "declare -A number=()", 'wait -n -p ended "$1"', "echo ${x@Q}", "echo ${x,,}", "mapfile -t a", "a &>>b",
        "[[ $x =~ ^[a-z](b)?$ ]]", 'f "${storage[@]}"', "echo ${a[-1]}", "printf -v 'a[1]' x", "readlink -f a",
        'here=$(cd "$(dirname a)" && pwd)', "sed -n '2,/^set /{p}'",
    ],
)  # fmt: skip
def test_what_is_newer_is_found(line):
    assert any(re.search(pattern, line) for pattern in NEWER)


@pytest.mark.parametrize("script", SCRIPTS)
def test_cdpath_misleads_nobody(script, tmp_path):
    (tmp_path / "experiments/launch").mkdir(parents=True)
    (tmp_path / "experiments/configs").mkdir()
    arguments = {"local.sh": [], "tpu_vm.sh": TPU_VM, "gke_xpk.sh": GKE, "slurm.sh": SLURM}[script]
    found = subprocess.run(
        [*([BASH] if BASH else []), f"experiments/launch/{script}", "--dry-run", *arguments, "--", "digits"],
        cwd=ROOT, env=os.environ | {"CDPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")


def test_local_would_start_every_process(tmp_path):
    first, second = dry_run("local.sh", "--devices", 4, "digits", "--run-dir", "a b", cwd=tmp_path)
    for i, words in enumerate((first, second)):
        assert {f"JAX_PROCESS_ID={i}", "JAX_NUM_PROCESSES=2", "JAX_PLATFORMS=cpu"} <= set(words)
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=4" in words
        start = words.index("python")
        assert words[start + 1 : start + 5] == [str(ROOT / "experiments/train.py"), "digits", "--run-dir", "a b"]
    assert "2>&1" not in first
    assert "2>&1" in second


def test_tpu_vm_would_create_install_and_train(tmp_path):
    options = [*TPU_VM, "--project", "p", "--create", "v5litepod-16", "--spot"]
    found = dry_run("tpu_vm.sh", *options, "imagenet_s", "--data-dir", "/mnt/a b", cwd=tmp_path)
    create, describe, install, train, _, follow = found
    place = ["--zone=zone-a", "--project=p"]
    assert create[:8] == ["gcloud", "compute", "tpus", "queued-resources", "create", "slice", *place]
    assert {"--node-id=slice", "--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    assert describe[4] == "describe"
    for words in (install, train, follow):
        assert words[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", *place]
    assert "--worker=all" in install
    assert "--worker=all" in train
    assert "git clone https://host/code.git ge2mst_jax;" in install[-1]
    assert "git checkout --detach abc123;" in install[-1]
    assert '-r requirements.txt "jax[tpu]==$(grep ^jax== requirements.txt' in install[-1]
    arguments = r"imagenet_s --data-dir /mnt/a\ b --run-dir /mnt/runs/s --coordinator auto"
    assert f"experiments/train.py {arguments} </dev/null >../imagenet_s.log" in train[-1]


def test_tpu_vm_creates_nothing_unless_asked_to(tmp_path):
    found = dry_run("tpu_vm.sh", *TPU_VM, "digits", cwd=tmp_path)
    assert not any("queued-resources" in words for words in found)


@pytest.mark.parametrize(("script", "options"), [("tpu_vm.sh", TPU_VM), ("gke_xpk.sh", GKE)])
def test_run_goes_into_a_bucket(script, options, tmp_path):
    lines = dry_run(script, *options, "--run-dir", "gs://b/r", "digits", cwd=tmp_path)
    assert any("train.py digits --run-dir gs://b/r --coordinator auto" in word for line in lines for word in line)


def test_gke_would_submit_one_workload(tmp_path):
    (words,) = dry_run("gke_xpk.sh", *GKE, "--storage", "nfs", "imagenet_s", "--data-dir", "/mnt/d", cwd=tmp_path)
    assert words[:3] == ["xpk", "workload", "create"]
    expected = ["--cluster=c", "--tpu-type=v5litepod-16", "--storage=nfs", "--max-restarts=10", "--workload=job-1"]
    expected += ["--restart-on-exit-codes=130,143"]
    assert set(expected) <= set(words)
    assert words[-1].startswith("--command=git clone https://host/code.git ge2mst_jax && cd ge2mst_jax && ")
    train = "exec python experiments/train.py imagenet_s --data-dir /mnt/d --run-dir /mnt/runs/s --coordinator auto"
    assert words[-1].endswith(train)


def test_slurm_would_submit_a_process_for_each_gpu(tmp_path):
    options = [
        *SLURM,
        "--nodes",
        2,
        "--time",
        "24:00:00",
        "--partition",
        "p",
        "--sbatch",
        "qos=high",
        "--sbatch",
        "mem=0",
    ]
    (words,) = dry_run("slurm.sh", *options, "imagenet_s", "--data-dir", "/mnt/a b", cwd=tmp_path)
    assert words[0] == "sbatch"
    expected = ["--job-name=imagenet_s", "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=8", "--gres=gpu:8"]
    expected += ["--time=24:00:00", "--partition=p", "--qos=high", "--mem=0", "--signal=TERM@180", "--requeue"]
    assert set(expected) <= set(words)
    assert not [word for word in words if word.startswith("--account")]
    train = shlex.split(words[-1].removeprefix("--wrap=").partition(";")[0])
    assert train[:4] == ["srun", "--cpus-per-task=8", "python", str(ROOT / "experiments/train.py")]
    assert train[4:7] == ["imagenet_s", "--data-dir", "/mnt/a b"]
    assert train[7:] == [*SLURM, "--coordinator", "auto"]


def test_slurm_would_submit_a_process_for_each_node(tmp_path):
    (words,) = dry_run("slurm.sh", *SLURM, "--per", "node", "--gpus", 4, "--cpus", 6, "digits", cwd=tmp_path)
    assert {"--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=24", "--gres=gpu:4"} <= set(words)
    assert words[-1].startswith("--wrap=srun --cpus-per-task=24 ")


def stand_ins(folder, **programs):
    """The environment of a Slurm whose sbatch runs the job at once, with sh, and whose other programs do as is said."""
    programs["sbatch"] = 'for last; do :; done; SLURM_JOB_ID=$$ exec sh -c "${last#--wrap=}"'
    for name, body in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("status", "queued"), [(0, False), (2, False), (1, False), (137, False), (143, True)])
def test_slurm_queues_again_what_was_told_to_end(status, queued, tmp_path):
    srun = f'printf "<%s>" "$@"; exit {status}'
    env = stand_ins(tmp_path, srun=srun, scontrol='echo " scontrol $*"') | {"PYTHON": "/opt/a b/python"}
    found = launch("slurm.sh", *SLURM, "digits", "--run-dir", 'a "$b" c', cwd=tmp_path, env=env)
    assert found.returncode == status
    assert found.stdout.startswith("<--cpus-per-task=8></opt/a b/python><")
    assert '<digits><--run-dir><a "$b" c><--run-dir></mnt/runs/s><--coordinator><auto>' in found.stdout
    assert found.stdout.endswith("\n") == queued
    assert bool(re.search(r" scontrol requeue \d+\n$", found.stdout)) == queued


@pytest.mark.parametrize("platform", ["tpu", "cuda12", "cuda13"])
def test_pinned_jax_has_what_the_launchers_install(platform):
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("jax==")]
    assert len(pins) == 1
    from importlib.metadata import metadata

    assert platform in metadata("jax").get_all("Provides-Extra")


def stub(folder, body):
    """In place of Python: prints a port if asked for one, else does `body`."""
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n[[ $1 == -c ]] && echo 12345 && exit\n{body}\n")
    path.chmod(0o755)
    return os.environ | {"PYTHON": str(path)}


def test_local_hands_on_a_failure_and_ends_the_others(tmp_path):
    env = stub(tmp_path, "((JAX_PROCESS_ID == 1)) && echo broken && exit 3; exec sleep 100")
    start = time.monotonic()
    found = launch("local.sh", "digits", cwd=tmp_path, env=env)
    assert found.returncode == 3
    assert time.monotonic() - start < 50
    assert found.stderr == (
        "local.sh: process 1 ended with status 3, so the others are ended (logs: runs/digits.logs)\n"
    )
    assert (tmp_path / "runs/digits.logs/process-1.log").read_text() == "broken\n"


@contextlib.contextmanager
def started(folder, body):
    """local.sh with two stubs that are ready, ended at the exit."""
    # A shell that starts tests in the background lets them ignore SIGINT, which bash could not trap then.
    command = ["env", "--default-signal=INT,TERM", *([BASH] if BASH else []), str(LAUNCH / "local.sh")]
    ready = "echo ready >ready-$JAX_PROCESS_ID; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [*command, "--logs", "logs", "digits"], cwd=folder, env=stub(folder, f"{body}; {ready}"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 50
        try:
            while not all((folder / f"ready-{i}").exists() for i in (0, 1)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "INT")])
def test_local_hands_on_a_signal_and_waits_for_an_orderly_end(number, name, tmp_path):
    body = f"trap 'sleep 0.5; echo saved $JAX_PROCESS_ID; exit {128 + number}' {name}"
    with started(tmp_path, body) as running:
        running.send_signal(number)
        out, err = running.communicate(timeout=50)
    assert (running.returncode, out, err) == (128 + number, "saved 0\n", "")
    assert (tmp_path / "logs/process-1.log").read_text() == "saved 1\n"


def test_local_ends_in_order_when_one_process_is_told_to(tmp_path):
    body = "trap 'sleep $JAX_PROCESS_ID; echo saved; exit 143' TERM; echo $$ >pid-$JAX_PROCESS_ID"
    with started(tmp_path, body) as running:
        os.kill(int((tmp_path / "pid-0").read_text()), signal.SIGTERM)
        out, err = running.communicate(timeout=50)
    assert (running.returncode, out) == (143, "saved\n")
    assert err == "local.sh: process 0 ended with status 143, so the others are ended (logs: logs)\n"
    assert (tmp_path / "logs/process-1.log").read_text() == "saved\n"


@pytest.mark.slow
def test_local_trains_on_two_processes(tmp_path):
    env = os.environ | {
        "PYTHON": sys.executable,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    options = ["--steps", 3, "--log-every-steps", 1, "--run-dir", "run"]
    found = launch("local.sh", "--logs", "logs", "digits", *options, cwd=tmp_path, env=env)
    assert found.returncode == 0, found.stderr
    assert re.findall(r"^step (\d)/3  loss \d\.\d+", found.stdout, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"^test accuracy \d+\.\d+ %  in run$", found.stdout, re.MULTILINE)
    assert "loss" not in (tmp_path / "logs" / "process-1.log").read_text()  # process 0 alone reports
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


#: Two tasks on one node, as Slurm 22.05 tells them so.
SRUN = """shift
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" >"task-$i" 2>&1 & pids[i]=$!; done
wait "${pids[0]}" && wait "${pids[1]}"
"""


@pytest.mark.slow
def test_slurm_trains_on_two_processes_that_find_each_other(tmp_path):
    env = stand_ins(tmp_path, srun=SRUN) | {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    options = ["--run-dir", "run", "digits", "--steps", 3, "--log-every-steps", 1]
    found = launch("slurm.sh", *options, cwd=tmp_path, env=env)
    first, second = ((tmp_path / f"task-{i}").read_text() for i in (0, 1))
    assert found.returncode == 0, first + second
    lines = [line for line in first.splitlines() if not line.startswith("[Gloo]")]
    assert lines[0] == "devices: 2 cpu, 2 processes"
    assert re.findall(r"^step (\d)/3  loss \d\.\d+", first, re.MULTILINE) == ["1", "2", "3"]
    assert "loss" not in second
