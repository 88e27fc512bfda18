"""Data sets by name, each one line of text: `digits`, `idx:`, `folder:` and `tfds:`."""

from pathlib import Path

from ge2mst_jax.checks import shown
from ge2mst_jax.data.decode import DataError
from ge2mst_jax.data.digits import load_digits
from ge2mst_jax.data.folder import open_folder
from ge2mst_jax.data.idx import open_idx
from ge2mst_jax.data.source import SPLITS, MemorySource, Source, check_on_corrupt, expanded
from ge2mst_jax.folders import check_mounted

SPECS = "digits, idx:FOLDER, folder:FOLDER, tfds:NAME[/CONFIG][:VERSION]"


def open_source(spec: str, split: str, data_dir: str | Path | None = None, on_corrupt: str = "raise") -> Source:
    """Opens a split of a data set by name.

    Args:
        spec: one of

            - `digits`: scikit-learn's handwritten digits, carried by the package;
            - `idx:FOLDER`: the IDX files of MNIST or Fashion-MNIST, gzipped or not;
            - `folder:FOLDER`: images in `FOLDER/train/CLASS/` and `FOLDER/val/CLASS/` (or `test`); classes are numbered
              in alphabetical order ("10" comes before "2");
            - `tfds:NAME[/CONFIG][:VERSION]`: a TFDS set prepared as array_record (`experiments/prepare_data.py`); where
              it has no labelled `test`, the test split is `validation`.
        split: train or test.
        data_dir: of TFDS sets; TFDS's own folder if none.
        on_corrupt: raise an error at an image that can't be decoded, or skip (training takes the next one of the
            order in its place, evaluation masks it; both count it).

    Returns:
        Small sets in memory, the others as files that are decoded when they are read.

    Raises:
        DataError: the set is missing or something is wrong with it; the message names the file.
        ValueError: an unknown kind, split or `on_corrupt`; a bucket, which no reader of data opens.

    >>> len(open_source("digits", "test"))
    360
    """
    kind, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(f"split is {shown(split)}: it must be one of {', '.join(SPLITS)}")
    check_on_corrupt(on_corrupt)
    check_mounted("data_dir", data_dir)
    if spec == "digits":
        return _digits(split, on_corrupt)
    if kind not in ("idx", "folder", "tfds") or not rest:
        raise ValueError(f"unknown data set {shown(spec)}: known are {SPECS}")
    check_mounted("data", rest)
    try:
        if kind == "idx":
            return open_idx(expanded(rest), split, on_corrupt)
        if kind == "folder":
            return open_folder(expanded(rest), split, on_corrupt)
        from ge2mst_jax.data.tfds_source import open_tfds  # a second to import: only where it is used

        return open_tfds(rest, split, data_dir, on_corrupt)
    except OSError as error:
        raise DataError(f"{error.filename or spec}: can't be read ({error.strerror or error})") from error


def _digits(split: str, on_corrupt: str) -> MemorySource:
    digits = load_digits()
    images, labels = getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels")
    return MemorySource("digits", split, images, labels, tuple("0123456789"), on_corrupt)
