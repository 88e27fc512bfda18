"""Token partitions: what a group holds, exact inverses on every grid, and what the errors say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge2mst_jax.grouping import PARTITIONS, Scale, partition, unpartition

GRID = np.arange(24).reshape(4, 6)


def place(scale, height, width, y, x):
    """Group and slot of the token at `(y, x)`, from the definition alone."""
    rows, columns = scale.window
    if scale.partition == "block":
        return (y // rows) * (width // columns) + x // columns, (y % rows) * columns + x % columns
    row_step, column_step = height // rows, width // columns
    return (y % row_step) * column_step + x % column_step, (y // row_step) * columns + x // column_step


def test_block_groups_are_contiguous_windows():
    expected = [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
    np.testing.assert_array_equal(partition(GRID, Scale("block", (2, 3))), expected)


def test_grid_groups_are_strided_over_the_whole_grid():
    expected = [[0, 2, 4, 12, 14, 16], [1, 3, 5, 13, 15, 17], [6, 8, 10, 18, 20, 22], [7, 9, 11, 19, 21, 23]]
    np.testing.assert_array_equal(partition(GRID, Scale("grid", (2, 3))), expected)


def test_rectangular_windows_are_rows_by_columns():
    np.testing.assert_array_equal(
        partition(GRID, Scale("block", (4, 1))),
        [[0, 6, 12, 18], [1, 7, 13, 19], [2, 8, 14, 20], [3, 9, 15, 21], [4, 10, 16, 22], [5, 11, 17, 23]],
    )
    np.testing.assert_array_equal(
        partition(GRID, Scale("grid", (1, 2))),
        [[6 * row + column, 6 * row + column + 3] for row in range(4) for column in range(3)],
    )


@pytest.mark.parametrize("name", PARTITIONS)
def test_window_of_the_whole_grid_is_one_group_in_reading_order(name):
    np.testing.assert_array_equal(partition(GRID, Scale(name, (4, 6))), np.arange(24)[None])


@pytest.mark.parametrize("name", PARTITIONS)
def test_window_of_one_token_is_a_group_a_token(name):
    np.testing.assert_array_equal(partition(GRID, Scale(name, 1)), np.arange(24)[:, None])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(PARTITIONS),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([(), (2,), (2, 3)]),
)
def test_partition_is_the_definition_and_unpartition_its_exact_inverse(name, window, count, rest):
    height, width = window[0] * count[0], window[1] * count[1]
    scale = Scale(name, window)
    tokens = np.arange(height * width * int(np.prod(rest))).reshape(height, width, *rest)
    groups = np.asarray(partition(tokens, scale))
    assert groups.shape == (count[0] * count[1], window[0] * window[1], *rest)
    for y in range(height):
        for x in range(width):
            np.testing.assert_array_equal(groups[place(scale, height, width, y, x)], tokens[y, x])
    np.testing.assert_array_equal(unpartition(groups, scale, height, width), tokens)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(PARTITIONS),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_partition_is_the_exact_inverse_of_unpartition(name, window, count):
    scale = Scale(name, window)
    groups = np.arange(np.prod(window) * np.prod(count) * 2).reshape(np.prod(count), np.prod(window), 2)
    tokens = unpartition(groups, scale, window[0] * count[0], window[1] * count[1])
    np.testing.assert_array_equal(partition(tokens, scale), groups)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.bfloat16, jnp.uint8])
def test_type_of_the_tokens_is_kept(dtype):
    tokens = jnp.ones((4, 6, 2), dtype)
    groups = partition(tokens, Scale("grid", 2))
    assert groups.dtype == unpartition(groups, Scale("grid", 2), 4, 6).dtype == dtype


def test_error_names_the_grid_the_scale_and_the_windows_that_fit():
    message = (
        r"^scale block7 does not divide the 16x12 token grid: windows that fit are "
        r"1, 2, 4, 8, 16 \(rows\) and 1, 2, 3, 4, 6, 12 \(columns\)$"
    )
    scale = Scale("block", 7)
    for attempt in (
        lambda: scale.check(16, 12),
        lambda: partition(jnp.zeros((16, 12, 3)), scale),
        lambda: unpartition(jnp.zeros((4, 49, 3)), scale, 16, 12),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


@pytest.mark.parametrize("window", [(4, 5), (5, 4), (8, 4)])
def test_scale_must_divide_rows_and_columns(window):
    with pytest.raises(ValueError, match=rf"scale grid{window[0]}x{window[1]} does not divide the 4x4 token grid"):
        partition(jnp.zeros((4, 4)), Scale("grid", window))


@pytest.mark.parametrize(
    ("text", "scale", "tokens"),
    [
        ("block7", Scale("block", 7), 49),
        ("grid2x4", Scale("grid", (2, 4)), 8),
        (" grid14 ", Scale("grid", (14, 14)), 196),
        ("block3x3", Scale("block", 3), 9),
    ],
)
def test_scale_is_read_from_its_text_and_written_back(text, scale, tokens):
    assert Scale.parse(text) == scale
    assert hash(Scale.parse(text)) == hash(scale)
    assert Scale.parse(str(scale)) == scale
    assert scale.tokens == tokens


def test_text_of_a_scale_is_the_shortest():
    assert [str(Scale("block", 7)), str(Scale("block", (7, 7))), str(Scale("grid", (2, 4)))] == [
        "block7",
        "block7",
        "grid2x4",
    ]


@pytest.mark.parametrize(
    "text", ["", "block", "7", "block-2", "blok7", "grid2x", "grid2x4x4", "block 7", "block7.5", "block²", 7, None]
)
def test_text_that_is_no_scale_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"is not a scale: write block or grid and the window, e.g. 'block7', 'grid2x"):
        Scale.parse(text)


@pytest.mark.parametrize("window", [0, -1, 2.0, (2,), (2, 3, 4), (2, 0), [2, 2], "2"])
def test_window_that_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match="it must be a whole number of tokens, at least 1, or two"):
        Scale("block", window)


def test_unknown_partition_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown partition 'window': known are block, grid"):
        Scale("window", 7)


def test_partition_compiles_with_the_scale_as_a_constant():
    cut = jax.jit(partition, static_argnums=1)
    np.testing.assert_array_equal(cut(GRID, Scale("grid", 2)), partition(GRID, Scale("grid", 2)))
