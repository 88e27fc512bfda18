"""The real handwritten digits that scikit-learn carries: no download, 1,797 images of 8×8."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory: `[N, H, W, C]` uint8, labels `[N]` int32."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train_images.shape[1:]

    @property
    def num_classes(self) -> int:
        return int(self.train_labels.max()) + 1


def load_digits() -> Dataset:
    """The digits under a fixed, stratified 80/20 split: 1,437 training and 360 test images.

    The sixteen grey levels are stretched to 0..255, `p = round(255·x/16)`.

    Source: E. Alpaydin, C. Kaynak, 1998, UCI; the test part of "optical recognition of handwritten digits".

    >>> digits = load_digits()
    >>> digits.train_images.shape, digits.test_images.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    from sklearn.datasets import load_digits as load  # a second to import: only where it is used
    from sklearn.model_selection import train_test_split

    bunch = load()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test, train_labels, test_labels = train_test_split(
        images, bunch.target.astype(np.int32), test_size=0.2, stratify=bunch.target, random_state=0
    )
    return Dataset("digits", train, train_labels, test, test_labels)
