"""Spike codes: the table of the design as literals, greedy encoding, and what the text form refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge2mst_jax.spiking import SpikeCode, project

# text: (steps, weights, max level, levels, spikes that encode 0..L)
TABLE = {
    "1x4": (4, (8, 4, 2, 1), 15, tuple(range(16)), (0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4)),
    "2x2": (4, (2, 1, 2, 1), 6, (0, 1, 2, 3, 4, 5, 6), (0, 1, 1, 2, 3, 3, 4)),
    "4x1": (4, (1, 1, 1, 1), 4, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)),
    "2x3/1": (6, (4, 2, 1, 4, 2, 1), 8, (0, 1, 2, 3, 4, 5, 6, 8), (0, 1, 1, 2, 1, 2, 2, 2, 2)),
    "1x1": (1, (1,), 1, (0, 1), (0, 1)),
    "2x2+2,0": (4, (8, 4, 2, 1), 15, tuple(range(16)), (0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4)),
    "2x2+1,0": (4, (4, 2, 2, 1), 9, tuple(range(10)), (0, 1, 1, 2, 1, 2, 2, 3, 3, 4)),
}
TEXTS = [*TABLE, "1x8"]


@pytest.mark.parametrize("text", TABLE)
def test_table(text):
    steps, weights, top, levels, counts = TABLE[text]
    code = SpikeCode.parse(text)
    assert code.num_steps == steps
    assert code.step_weights == weights
    assert code.max_level == top
    assert code.levels == levels
    assert code.spike_counts == counts
    assert code.has_gaps == (text == "2x3/1")


def test_a_byte_is_its_own_code():
    code = SpikeCode.parse("1x8")
    assert (code.num_steps, code.step_weights) == (8, (128, 64, 32, 16, 8, 4, 2, 1))
    assert (code.max_level, code.levels, code.has_gaps) == (255, tuple(range(256)), False)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    np.testing.assert_array_equal(code.codebook, bits)
    assert code.spike_counts == tuple(bits.sum(1).tolist())


def test_known_trains():
    def train(text, level):
        return SpikeCode.parse(text).codebook[level].tolist()

    assert train("2x2", 3) == [1, 1, 0, 0]
    assert train("2x2", 4) == [1, 1, 0, 1]
    assert train("2x2", 5) == [1, 1, 1, 0]
    assert train("4x1", 2) == [1, 1, 0, 0]
    assert train("2x2+1,0", 8) == [1, 1, 1, 0]
    # One spike a group: 6 is 4 and 2, 7 does not exist and becomes 6.
    assert train("2x3/1", 6) == train("2x3/1", 7) == [1, 0, 0, 0, 1, 0]
    assert train("2x3/1", 8) == [1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16])
def test_every_level_encodes_and_decodes_to_itself(text, dtype):
    code = SpikeCode.parse(text)
    levels = jnp.asarray(code.levels, dtype)
    spikes = code.encode(levels)
    assert spikes.shape == (code.num_steps, len(code.levels))
    assert spikes.dtype == dtype
    np.testing.assert_array_equal(np.unique(np.asarray(spikes, int)), [0, 1])
    np.testing.assert_array_equal(np.asarray(code.decode(spikes), int), code.levels)
    np.testing.assert_array_equal(np.asarray(spikes, int).T, code.codebook[list(code.levels)])


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_is_the_largest_level_below_and_monotone(text):
    code = SpikeCode.parse(text)
    expected = [max(level for level in code.levels if level <= n) for n in range(code.max_level + 1)]
    assert list(code.projection) == expected
    assert sorted(code.projection) == list(code.projection)
    numbers = jnp.arange(code.max_level + 1)
    np.testing.assert_array_equal(code.decode(code.encode(numbers)), expected)
    np.testing.assert_array_equal(project(numbers, code), expected)
    np.testing.assert_array_equal(code.spike_counts, code.encode(numbers).sum(0))


@pytest.mark.parametrize("text", TEXTS)
def test_numbers_out_of_range_are_clipped(text):
    code = SpikeCode.parse(text)
    found = code.decode(code.encode(jnp.array([-3, code.max_level + 1, 1000])))
    np.testing.assert_array_equal(found, [0, code.max_level, code.max_level])


def test_cap_is_kept_in_every_group():
    for level in range(9):
        groups = SpikeCode.parse("2x3/1").codebook[level].reshape(2, 3).sum(1)
        assert groups.max() <= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0x4", "groups is 0: it must be a whole number, 1 to 255"),
        ("2x0", "steps_per_group is 0: it must be a whole number, 1 to 255"),
        ("2x", "is not a spike code: a spike code is written GxK"),
        ("1x30", "levels above 255"),
        ("2x2+0,2", "must not increase with time"),
        ("words", "is not a spike code: a spike code is written GxK"),
        ("", "is not a spike code"),
        ("2x2x2", "is not a spike code"),
        ("-1x2", "is not a spike code"),
        ("٢x٢", "is not a spike code"),
        (None, "None is not a spike code: a spike code is written GxK"),
        (22, "22 is not a spike code"),
        ("2x2/3", "cap is 3: it must be a whole number, 1 to 2"),
        ("2x2/0", "cap is 0: it must be a whole number, 1 to 2"),
        ("300x1", "groups is 300: it must be a whole number, 1 to 255"),
        ("2x2+1", "1 shifts for 2 groups: one a group"),
        ("2x2+9,0", "levels above 255"),
        ("1x200", "levels above 255"),
        ("2x8", "levels above 255"),
        ("86x2", "levels above 255"),
    ],
)
def test_bad_text_is_refused_with_what_is_allowed(text, says):
    with pytest.raises(ValueError, match="GxK") as caught:
        SpikeCode.parse(text)
    assert says in str(caught.value)
    assert "'2x3/1'" in str(caught.value)


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="shift is -1: it must be a whole number, 0 to 255"):
        SpikeCode(2, 2, shifts=(1, -1))
    with pytest.raises(ValueError, match="cap is 0"):
        SpikeCode(2, 2, cap=0)


def test_largest_codes():
    assert SpikeCode.parse("255x1").max_level == 255
    assert SpikeCode.parse("85x2").max_level == 255
    assert SpikeCode.parse("1x1+7").step_weights == (128,)


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trip_and_value_equality(text):
    code = SpikeCode.parse(text)
    assert str(code) == text
    again = SpikeCode.parse(f"  {code} ")
    assert again == code
    assert hash(again) == hash(code)
    assert {code: 1}[again] == 1
    with pytest.raises(AttributeError):
        code.groups = 3


def test_one_value_one_object():
    assert SpikeCode(2, 2, cap=2, shifts=(0, 0)) == SpikeCode.parse("2x2") == SpikeCode.parse("2x2/2+0,0")
    assert hash(SpikeCode(2, 2, cap=2)) == hash(SpikeCode(2, 2))
    assert SpikeCode.parse("2x2+2,0") != SpikeCode.parse("1x4")  # equal weights, another grouping
    assert len({SpikeCode.parse(text) for text in TEXTS}) == len(TEXTS)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_code_is_greedy_and_reads_its_own_text(data):
    groups, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    cap = data.draw(st.none() | st.integers(1, steps))
    shifts = tuple(sorted(data.draw(st.lists(st.integers(0, 2), min_size=groups, max_size=groups)), reverse=True))
    code = SpikeCode(groups, steps, cap, shifts)
    assert SpikeCode.parse(str(code)) == code
    assert code.num_steps == groups * steps
    shifts = shifts or (0,) * groups
    assert code.step_weights == tuple(2 ** (s + k) for s in shifts for k in range(steps - 1, -1, -1))
    assert code.levels[0] == 0
    assert code.levels[-1] == code.max_level == code.projection[-1]
    assert all(a <= b for a, b in zip(code.projection, code.projection[1:], strict=False))
    values = code.codebook.astype(int) @ np.array(code.step_weights)
    np.testing.assert_array_equal(values, code.projection)
    assert all(code.projection[level] == level for level in code.levels)
    assert code.codebook.reshape(-1, groups, steps).sum(2).max() <= (cap or steps)


def test_decode_wants_the_whole_train():
    with pytest.raises(ValueError, match=r"spikes of shape \(3, 2\) under code 2x2: the first axis must be T = 4"):
        SpikeCode.parse("2x2").decode(jnp.zeros((3, 2)))


def test_decode_of_narrow_types_holds_every_level():
    for dtype in (jnp.bool_, jnp.int8):
        found = SpikeCode.parse("1x8").decode(jnp.ones((8, 1), dtype))
        assert found.dtype == jnp.int32
        assert found.tolist() == [255]
    assert SpikeCode.parse("1x8").decode(jnp.ones((8, 1), jnp.uint8)).tolist() == [255]


def test_a_code_is_a_static_argument_of_jit():
    decode = jax.jit(lambda spikes, code: code.decode(spikes), static_argnums=1)
    assert decode(jnp.ones((4, 1)), SpikeCode.parse("2x2")).tolist() == [6]
    assert decode(jnp.ones((4, 1)), SpikeCode.parse("1x4")).tolist() == [15]


@pytest.mark.parametrize(
    "text", ["1x1", "1x4", "2x2", "4x1", "3x4", "1x8", "16x1", "2x3/1", "2x2+2,0", "4x2/1+1,0,0,0"]
)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bfloat16"])
def test_counted_spikes_are_those_of_the_train(text, dtype):
    code = SpikeCode.parse(text)
    levels = jnp.arange(code.max_level + 1).astype(dtype)
    counts = code.count(levels)
    assert counts.dtype == dtype
    np.testing.assert_array_equal(np.asarray(counts, int), np.asarray(code.encode(levels), int).sum(0))


def test_count_of_levels_out_of_range_is_that_of_the_nearest():
    code = SpikeCode.parse("2x2")
    assert code.count(jnp.array([-5, 99])).tolist() == [0, 4]
    assert code.count(jnp.array([-0.5, 6.9])).tolist() == [0.0, 4.0]
