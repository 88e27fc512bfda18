"""Prepares a TFDS data set as array_record, the format that ge2mst_jax reads (without TensorFlow), and verifies it.

    python experiments/prepare_data.py cifar10 --data-dir DIR
    python experiments/prepare_data.py imagenet2012 --data-dir DIR --verify True

Preparing most sets needs TensorFlow, once: `pip install -e .[prepare]`; reading them does not. ImageNet's archives must
lie in `DIR/downloads/manual`. The records are always counted; `--verify True` reads every one of them back, checks its
label and decodes its image. A set that is already there is only counted and verified. The last line says by what name
the set is read.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import difflib
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ge2mst_jax.checks import one_line
from ge2mst_jax.data.decode import DataError, decode_whole
from ge2mst_jax.data.source import check_label, expanded
from ge2mst_jax.data.tfds_source import (
    CHUNK,
    MissingDataError,
    TfdsSource,
    image_and_label,
    open_builder,
    open_split,
    prepared_folder,
)
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class PrepareData:
    """Prepares a TFDS data set as array_record and verifies it."""

    name: tyro.conf.Positional[str]
    """TFDS's name of the set, NAME[/CONFIG][:VERSION]."""
    data_dir: Path | None = None
    """Where prepared sets lie; TFDS's own folder if none."""
    verify: bool = False
    """Read every record back: its label in range, its image decodes."""


def build(name: str, data_dir: Path | None) -> Path:
    """Downloads and prepares a set; returns its folder (which config is TFDS's choice where the name has none).

    Raises:
        ValueError: TFDS doesn't know the name, needs a module that is not installed, or fails.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.partition(":")[0].partition("/")[0]
    if base not in known:
        similar = difflib.get_close_matches(base, known) or ["see https://www.tensorflow.org/datasets/catalog"]
        raise ValueError(f"TFDS knows no data set {base!r} ({', '.join(similar)})")
    tfds.disable_progress_bar()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_path)
    except ImportError as error:
        module = error.name or "tensorflow"
        raise ValueError(f"preparing {name} needs the module {module}: pip install -e .[prepare]") from error
    except Exception as error:  # whatever a set's own code raises
        raise ValueError(f"TFDS could not prepare {name}: {type(error).__name__}: {error}") from error


def count_records(builder, folder: Path, split: str) -> int:
    """Records in a split's files.

    Raises:
        DataError: not as many as the metadata say, or a file can't be read.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    found = 0
    for file in builder.info.splits[split].filepaths:
        try:
            reader = ArrayRecordReader(str(file))
            found += reader.num_records()
            reader.close()
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"{file}: can't be read ({error})") from error
    expected = builder.info.splits[split].num_examples
    if found != expected:
        raise DataError(f"{folder}: split {split} has {found} records, but its metadata say {expected}")
    return found


def verify_split(source: TfdsSource, advance) -> int:
    """Reads a whole split back; returns how many records have a label (all, or none in a split for competitions).

    Raises:
        DataError: a record can't be read, a label is out of range or missing, an image can't be decoded.
    """
    labelled = 0
    for start in range(0, len(source), CHUNK):
        indices = list(range(start, min(start + CHUNK, len(source))))
        for index, record in zip(indices, source.fetch(indices), strict=True):
            image, label = image_and_label(record, source.where(index))
            if label >= 0 or labelled:
                check_label(label, len(source.classes), source.where(index))
                labelled += 1
            decode_whole(image, where=source.where(index), channels=source.channels)
            advance(index + 1)
    if labelled not in (0, len(source)):
        raise DataError(f"{source.folder}, {source.split}: {len(source) - labelled} records have no label")
    return labelled


def find_or_build(options: PrepareData, progress: Progress) -> Path:
    """The prepared set's folder."""
    try:
        return prepared_folder(options.name, options.data_dir)
    except MissingDataError:
        task = progress.add_task(f"prepare {options.name}", total=None)
        folder = build(options.name, None if options.data_dir is None else expanded(options.data_dir))
        progress.update(task, total=1, completed=1)
        return folder


def main(options: PrepareData) -> None:
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        folder = find_or_build(options, progress)
        builder = open_builder(folder)
        for split in builder.info.splits:
            records, checked = count_records(builder, folder, split), "counted"
            if options.verify:
                task = progress.add_task(escape(one_line(f"verify {split}")), total=records)
                source = open_split(builder, folder, split)
                labelled = verify_split(source, lambda done, task=task: progress.update(task, completed=done))
                checked = f"every image decodes, {labelled} labels in range"
            console.print(Text(one_line(f"{split}: {records} records, {checked}")), soft_wrap=True)
    name, _, version = builder.info.full_name.rpartition("/")
    console.print(Text(one_line(f"{folder}: array_record, ready: --data tfds:{name}:{version}")), soft_wrap=True)


if __name__ == "__main__":
    run_command(main, PrepareData)
