"""What is installed: each room imports with its own extras alone, and the wheel carries what the commands need."""

import configparser
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ge2mst_jax import __version__, commands

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = SETUP["options.extras_require"]
#: The extras that a room needs; none: the light core is enough.
NEEDS = dict.fromkeys(("spiking", "grouping", "nn", "models", "convert", "energy"), ()) | {
    "data": ("data",), "report": ("report",), "train": ("train",), "plan": ("train",),
}  # fmt: skip

# In a process of its own: whatever lies in site-packages is not there, but for the modules that are named.
BLOCKED = """
import importlib.machinery, sys
allowed = set(sys.argv[2].split(","))

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is not None or name in allowed:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        origin = str(spec and (spec.origin or list(spec.submodule_search_locations or [""])[0]))
        if "site-packages" in origin:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Finder)
for name in sys.argv[1].split(","):
    __import__(name)
"""


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def wanted(extras) -> list[str]:
    """Requirements of the package with extras, those of extras that name others too."""
    found = lines_of(SETUP["options"]["install_requires"])
    for extra in extras:
        for line in lines_of(EXTRAS[extra]):
            own = re.fullmatch(r"ge2mst-jax\[(.*)\]", line)
            found += wanted(own[1].split(",")) if own else [line]
    return found


def modules_of(requirements) -> set[str]:
    """Top-level modules of the distributions that are installed with requirements."""
    left, seen = [Requirement(line) for line in requirements], set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in metadata.requires(name) or ():
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    left.append(child)
    names = {name for name, _ in seen}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if names & {canonicalize_name(owner) for owner in owners}
    }


def test_every_room_is_packaged_and_has_its_needs():
    packages = lines_of(SETUP["options"]["packages"])
    folders = {
        ".".join(("ge2mst_jax", *path.parent.relative_to(root).parts))
        for root in (ROOT / "ge2mst_jax", ROOT)
        for path in (root.rglob("__init__.py") if root.name == "ge2mst_jax" else (root / "experiments").rglob("*.py"))
    }
    assert sorted(packages) == sorted(folders)
    assert {name.split(".")[1] for name in folders if "." in name} == {*NEEDS, "experiments"}


@pytest.mark.parametrize("extras", sorted(set(NEEDS.values())), ids="-".join)
def test_rooms_import_with_their_own_needs_alone(extras):
    rooms = ["ge2mst_jax", *(f"ge2mst_jax.{room}" for room in NEEDS if NEEDS[room] == extras)]
    allowed = modules_of(wanted(extras)) | {"ge2mst_jax", "_distutils_hack"}
    command = [sys.executable, "-c", BLOCKED, ",".join(rooms), ",".join(sorted(allowed))]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-600:]


def test_the_light_core_is_light():
    """The block holds: what the core has not cannot be imported in its place."""
    allowed = modules_of(wanted(()))
    heavy = {"grain", "tensorflow_datasets", "matplotlib", "PIL", "sklearn", "tyro", "tensorboardX", "dm_pix"}
    assert not heavy & allowed
    command = [sys.executable, "-c", BLOCKED, "ge2mst_jax.data", ",".join(allowed | {"ge2mst_jax"})]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 1 and "(blocked)" in ran.stderr


def test_every_command_has_its_script():
    for line in lines_of(SETUP["options.entry_points"]["console_scripts"]):
        command, _, target = line.partition(" = ")
        assert target == "ge2mst_jax.commands:main"
        assert "__main__" in commands.script_of(command).read_text()
    with pytest.raises(ValueError, match=r"ge2mst-nope: there is no script nope\.py"):
        commands.script_of("ge2mst-nope")


def test_a_command_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(commands, "NEEDED", ("json", "not_there"))
    monkeypatch.setattr(sys, "argv", ["/bin/ge2mst-train"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("ge2mst-train: it needs not_there: install ge2mst_jax with its extra")


@pytest.mark.slow
def test_the_wheel_holds_rooms_scripts_and_types(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode and "setuptools" in ran.stderr + ran.stdout:
        pytest.skip("building needs setuptools, which pip cannot fetch here")
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert f"-{__version__}-" in wheel.name
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = [
        *(ROOT / "ge2mst_jax").rglob("*.py"), ROOT / "ge2mst_jax/py.typed", *(ROOT / "experiments").rglob("*.py")
    ]  # fmt: skip
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        assert (name if name.startswith("ge2mst_jax/") else f"ge2mst_jax/{name}") in held
    assert {name.split("/")[0] for name in held} == {"ge2mst_jax", f"ge2mst_jax-{__version__}.dist-info"}
