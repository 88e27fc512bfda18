"""The installed commands: `ge2mst-train ...` is `python experiments/train.py ...`, and so on."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Where the scripts lie: installed with the package, or beside it in a checkout.
FOLDERS = HERE / "experiments", HERE.parent / "experiments"
#: Modules that the extra `experiments` brings, and the scripts import.
NEEDED = ("tyro", "grain", "dm_pix", "PIL", "sklearn", "tensorboardX", "matplotlib", "flatbuffers")


def script_of(command: str) -> Path:
    """The script of a command.

    Raises:
        ValueError: there is none.

    >>> script_of("ge2mst-prepare-data").name
    'prepare_data.py'
    """
    name = command.removeprefix("ge2mst-").replace("-", "_") + ".py"
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{command}: there is no script {name} beside this package")


def main() -> None:
    """Becomes the script by whose command this process was started."""
    command = Path(sys.argv[0]).stem
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        says = "install ge2mst_jax with its extra 'experiments' (in a checkout: pip install '.[experiments]')"
        print(f"{command}: it needs {', '.join(absent)}: {says}", file=sys.stderr)
        sys.exit(2)
    os.execv(sys.executable, [sys.executable, str(script_of(command)), *sys.argv[1:]])
