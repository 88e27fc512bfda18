"""What the cases are tried on: a short run, its deployed network, data sets and images, and damaged copies of them.

    python tests/fuzz/fixtures.py FOLDER

makes them; `paths_of(FOLDER)` names them.
"""

import io
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

#: Names that cases use: `$RUN` in a command line, `RUN` in a call.
NAMES = {
    "RUN": "run", "NET": "net", "IDX": "idx", "PHOTOS": "photos", "TFDS": "tfds", "IMAGES": "images", "DIGIT":
    "images/digit.png", "LOOP": "loop", "FILE": "file.txt", "LONG": "x" * 300,
}  # fmt: skip


def paths_of(root: Path) -> dict[str, str]:
    """The path of each name."""
    return {name: str(Path(root) / part) for name, part in NAMES.items()}


def make_all(root: Path) -> None:
    """Writes every fixture below a folder; needs half a minute."""
    from tiny_sets import TinyPhotos, TinySquares, prepare, write_folder, write_idx

    root.mkdir(parents=True, exist_ok=True)
    make_run(root / "run")
    make_net(root / "net")
    write_idx(root / "idx")
    write_folder(root / "photos")
    for builder in (TinySquares, TinyPhotos):
        prepare(builder, root / "tfds")
    make_images(root / "images")
    (root / "loop").symlink_to(root / "loop")
    (root / "file.txt").write_text("not a folder\n")


def make_run(folder: Path) -> None:
    """A run of 4 steps on the digits, with a checkpoint every 2."""
    from ge2mst_jax.data import load_digits
    from ge2mst_jax.train import TrainConfig, train

    every = 2 * 32 / len(load_digits().train_images)
    train(TrainConfig(steps=4, batch_size=32, checkpoint_every_epochs=every, eval_every_epochs=every), folder)


def make_net(folder: Path) -> None:
    """A deployed network of random weights, with its training network."""
    import jax
    import jax.numpy as jnp

    from ge2mst_jax import create_model
    from ge2mst_jax.convert import deploy, save_net

    changes = dict(stages=(("conv", 8, 1), ("attention", 16, 1)), head_width=8, scales=("block2", "grid2"))
    model = create_model("ge2mst_nano", group_width=8, **changes)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    about = {"data": "digits", "classes": list("0123456789"), "decode": None}
    save_net(folder, deploy(model, variables, (8, 8, 1), about=about), "ge2mst_nano")


def png(side: int, rows: bytes) -> bytes:
    """A grey PNG file of a side and compressed rows, written by hand: what no library would write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_images(folder: Path) -> None:
    """Image files, sound ones and others, most of 8x8 pixels as the digits are."""
    from PIL import Image

    folder.mkdir()
    grey = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    image = Image.fromarray(grey)
    image.save(folder / "digit.png")
    image.save(folder / "digit.BMP")
    image.convert("P").save(folder / "palette.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("1").save(folder / "bits.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "float.tif")
    Image.new("L", (9, 8)).save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "rotated.jpg", exif=exif)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:700])
    (folder / "truncated.png").write_bytes((folder / "digit.png").read_bytes()[:52])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image\n")
    (folder / "bomb.png").write_bytes(png(60000, zlib.compress(bytes(100))))
    rows = bytearray(zlib.compress(b"".join(b"\0" + bytes(row) for row in grey)))
    rows[len(rows) // 2] ^= 255
    (folder / "chunk.png").write_bytes(png(8, bytes(rows)))
    shutil.copy(folder / "digit.png", folder / "mark[up].png")
    (folder / "close[").mkdir()
    shutil.copy(folder / "digit.png", folder / "close[/x].png")
    shutil.copy(folder / "digit.png", folder / "new\nline.png")
    shutil.copy(folder / "digit.png", os.path.join(os.fsencode(folder), b"bytes\xff.png"))
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nothing.png")


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "binary": lambda content: bytes(range(256)),
    "list": lambda content: b"[]",
    "null": lambda content: b"null",
    "keyless": lambda content: b'{"a": 1}',
    "deep": lambda content: b"[" * 100_000,
}


def damaged(path, file: str, how) -> str:
    """A copy of a file or folder in which the files that a pattern names are damaged.

    Args:
        path: what to copy.
        file: a pattern (`config.json`, `**/_METADATA`) below it.
        how: a name of `DAMAGE`; `"gone"`; `"folder"`; a number, the bit to flip (modulo the file's bits); or a dict:
            `{key: value}` put into the JSON that it holds (`...` takes a key out).
    """
    copy = Path(tempfile.mkdtemp()) / Path(path).name
    shutil.copytree(path, copy, symlinks=True)
    found = sorted(copy.glob(file))
    if not found:
        raise FileNotFoundError(f"{path} holds no {file}")
    for each in found:
        damage(each, how)
    return str(copy)


def damage(file: Path, how) -> None:
    """Damages one file, as `damaged` says."""
    if isinstance(how, int):
        flip(file, how)
    elif isinstance(how, dict):
        holds = json.loads(file.read_text())
        for key, value in how.items():
            holds.pop(key, None) if value is ... else holds.update({key: value})
        file.write_text(json.dumps(holds))
    elif how in ("gone", "folder"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        if how == "folder":
            file.mkdir()
    else:
        file.write_bytes(DAMAGE[how](file.read_bytes()))


def flip(file: Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(file.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))


def folder_of(entries: dict) -> str:
    """A new folder: `{name: content}`, content being bytes, text, a path to copy, a symlink (`"-> target"`) or
    `"fifo"`."""
    root = Path(tempfile.mkdtemp()) / "set"
    for name, content in entries.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(path if content is None else os.path.dirname(path), exist_ok=True)
        if content is None:
            continue
        if content == "fifo":
            os.mkfifo(path)
        elif isinstance(content, str) and content.startswith("-> "):
            os.symlink(content[3:], path)
        elif isinstance(content, str) and content.startswith("/"):
            shutil.copy(content, path)
        else:
            Path(os.fsdecode(path)).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(root)


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
