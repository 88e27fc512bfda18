"""What numbers were measured on: versions, device, commit, sources."""

import datetime
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict:
    """What the numbers were measured on: versions, device, cores, commit, time.

    >>> sorted(environment())
    ['commit', 'cores', 'device', 'devices', 'packages', 'python', 'time']
    """
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """Of the checkout that the package lies in, with `+` where files differ from it; `None` outside of one."""
    root = Path(__file__).parents[1]

    def git(*words):
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def digest_of_code() -> str:
    """SHA-256 over the sources of this package: unlike a commit, it also tells checkouts with changes apart.

    >>> len(digest_of_code())
    64
    """
    root, total = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def version(name: str) -> str | None:
    """Of a package; `None` where it is not installed.

    >>> version("no-such-package")
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
