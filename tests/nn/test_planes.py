"""Integer maps in planes: exact to the last bit of the bound, on all operand types, in any order and sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_maps import KINDS, slow_conv

from ge2mst_jax.nn import Arithmetic, integer_conv, integer_sums, planes, planes_of, selftest, sums_fit
from ge2mst_jax.nn.maps import by_taps, convolve
from ge2mst_jax.nn.planes import EXACT, cut, plane_widths
from ge2mst_jax.spiking import SpikeCode, expg_charge

ARITHMETICS = [Arithmetic(bits, backend) for bits in (31, 24) for backend in (None, "tpu")]
compiled = jax.jit(integer_conv, static_argnums=(2, 3, 4))


def weights_at_the_bound(shape, max_level, bits, seed=0):
    """int32 weights whose `Σ|W|·L` is the largest below `2^bits`: random signs, sizes from 1 to nearly the bound."""
    random = np.random.default_rng(seed)
    fan_in, features = int(np.prod(shape[:3])), shape[3]
    shares = random.dirichlet(np.full(fan_in, 0.3), features).T  # [fan_in, features]
    most = (2**bits - 1) // max_level
    sizes = np.floor(shares * most).astype(np.int64)
    sizes[0] += most - sizes.sum(0)  # to the last bit
    signs = random.choice([-1, 1], sizes.shape)
    signs[:, 0], signs[:, -1] = 1, -1  # one channel reaches the bound, one its negative
    made = (sizes * signs).reshape(shape)
    assert (np.abs(made).reshape(-1, features).sum(0) == most).all()
    return made.astype(np.int32)


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
@pytest.mark.parametrize("kind", ["dense_strided", "stem_7x7_stride_4", "grouped", "depth_wise", "1x1", "1x1_grouped"])
@pytest.mark.parametrize("max_level", [1, 6, 255])
def test_sums_that_reach_the_bound_are_exact(kind, max_level, arithmetic):
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    kernel = weights_at_the_bound((size, size, fan_in, features), max_level, arithmetic.current_bits)
    x = np.random.default_rng(1).integers(0, max_level + 1, (3, *grid, channels))
    x[0] = max_level
    expected = slow_conv(x, kernel, stride)
    found = compiled(jnp.asarray(x, jnp.int32), kernel, stride, max_level, arithmetic)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(np.asarray(found, np.int64), expected)
    if size == 1 and stride == 1 and fan_in == channels:
        assert np.abs(expected).max() == (2**arithmetic.current_bits - 1) // max_level * max_level  # attained


@pytest.mark.parametrize("form", ["uint8", "int32", "float32"])
def test_levels_of_any_type_give_the_same_sums(form):
    kernel = weights_at_the_bound((3, 3, 3, 4), 6, 31)
    x = np.random.default_rng(1).integers(0, 7, (2, 4, 5, 3))
    np.testing.assert_array_equal(
        integer_conv(jnp.asarray(x, form), kernel, 1, 6, Arithmetic()), slow_conv(x, kernel, 1)
    )


@pytest.mark.parametrize("operand_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [24, 31])
@pytest.mark.parametrize("max_level", [1, 6, 15, 255])
@pytest.mark.parametrize("fan_in", [1, 9, 147, 1152, 9 * 768])
def test_every_plane_stays_where_its_products_are_exact(fan_in, max_level, bits, operand_type):
    """Whatever the weights: their planes add up to them, and no plane's worst-case sum leaves `2^24`."""
    count, width = plane_widths(fan_in, max_level, bits, operand_type)
    most = (2**bits - 1) // max_level
    columns = [np.array([most // fan_in] * fan_in), np.array([-(most - fan_in + 1)] + [1] * (fan_in - 1))]
    columns += [weights_at_the_bound((1, 1, fan_in, 3), max_level, bits, seed=2)[0, 0, :, i] for i in range(3)]
    weights = np.stack(columns, -1).astype(np.int64)
    made = [np.asarray(p, np.int64) for p in cut(jnp.asarray(weights, jnp.int32), count, width)]
    assert (sum(plane << (i * width) for i, plane in enumerate(made)) == weights).all()
    for plane in made:
        assert (np.abs(plane).sum(0) * max_level <= EXACT).all()
        assert operand_type == "float32" or np.abs(plane).max() <= 256
    # Digits at their worst: every one of a low plane the largest.
    assert fan_in * 2 ** (width - 1) * max_level <= EXACT or count == 1


@pytest.mark.parametrize(
    ("bits", "operand_type", "count"), [(31, "float32", 2), (24, "float32", 1), (31, "bfloat16", 4)]
)
def test_number_of_planes_of_a_3x3_of_128_channels(bits, operand_type, count):
    assert plane_widths(9 * 128, 6, bits, operand_type)[0] == count


def test_rounding_of_the_uppermost_plane_is_counted():
    """`2^31/2^7` alone is `2^24`: what 200,000 weights are rounded up by does not fit beside it."""
    assert plane_widths(200_000, 1, 31, "float32") == (3, 7)


def test_so_many_weights_that_no_plane_holds_their_sum_are_refused():
    with pytest.raises(ValueError, match="33554432 weights of one output and levels up to 255: their sums leave"):
        plane_widths(2**25, 255, 31, "float32")


def test_weights_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="weights of type float32: those of a deployed network are int32"):
        integer_conv(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 1, 1, 1)), 1, 6, Arithmetic())


@pytest.mark.parametrize("backend", ["cuda", "", 3], ids=str)
def test_unknown_backend_is_refused(backend):
    with pytest.raises(ValueError, match="unknown backend"):
        Arithmetic(31, backend)


def test_sums_do_not_depend_on_jit_or_on_eight_devices_with_channels_sharded():
    kernel = weights_at_the_bound((3, 3, 16, 8), 6, 31)
    x = np.random.default_rng(1).integers(0, 7, (8, 6, 6, 16)).astype(np.int32)
    expected = slow_conv(x, kernel, 1)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def sharded(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    call = functools.partial(integer_conv, stride=1, max_level=6, arithmetic=Arithmetic())
    np.testing.assert_array_equal(call(x, kernel), expected)
    # Channels that arrive on four devices: partial sums are added up between devices, in their order.
    for axes, places in (
        (("data", None, None, "model"), (None, None, "model")),
        (("data",), (None, None, None, "model")),
    ):
        np.testing.assert_array_equal(jax.jit(call)(sharded(x, *axes), sharded(kernel, *places)), expected)


@pytest.mark.parametrize("order", range(4))
def test_planes_add_up_to_the_same_in_any_order_of_channels(order):
    """All positive weights first, all negative ones last: the largest partial sums that there are."""
    kernel = weights_at_the_bound((1, 1, 64, 4), 6, 31)
    rows = [np.argsort(kernel[0, 0, :, 1]), np.argsort(-kernel[0, 0, :, 1]), np.arange(64), np.arange(64)[::-1]][order]
    x = np.random.default_rng(1).integers(0, 7, (1, 2, 2, 64))
    expected = slow_conv(x, kernel, 1)
    np.testing.assert_array_equal(
        integer_conv(jnp.asarray(x[..., rows]), kernel[:, :, rows], 1, 6, Arithmetic()), expected
    )


# --- guard bits -------------------------------------------------------------------------------------------------------


def largest_that_fits(fan_in, max_level, current_bits, guard):
    """The largest `Σ|W|·L` with that many guard bits, of weights of one size, and that size."""
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        fits = sums_fit(middle * (fan_in or 9) * max_level, middle, fan_in, max_level, current_bits, guard)
        low, high = (middle, high) if fits else (low, middle)
    return low


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
@pytest.mark.parametrize("guard", [0, 3, 7])
@pytest.mark.parametrize("kind", ["dense", "grouped", "depth_wise", "1x1", "stem_7x7_stride_4"])
def test_sums_with_guard_bits_are_rounded_once_and_exactly(kind, guard, arithmetic):
    """Weights so large that the words are full, of both signs: what comes out is rounded from the whole sum."""
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    random, max_level = np.random.default_rng(guard), 6
    words = None if kind == "depth_wise" else size * size * fan_in
    most = largest_that_fits(words, max_level, arithmetic.current_bits, guard)
    most = min(most, (2**31 - 1 << guard) // (max_level * size * size * fan_in))  # and what is rounded, int32
    kernel = random.integers(-most, most + 1, (size, size, fan_in, features))
    kernel[..., 0], kernel[..., -1] = most, -most
    x = random.integers(0, max_level + 1, (3, *grid, channels))
    x[0] = max_level
    expected = (2 * slow_conv(x, kernel, stride).astype(np.int64) + 2**guard) >> (guard + 1)
    assert np.abs(expected).max() < 2**31

    def found(x, kernel, guard):
        return integer_sums(x, kernel, stride, max_level, arithmetic).rounded(guard)

    rounded = jax.jit(found)(jnp.asarray(x, jnp.int32), jnp.asarray(kernel, jnp.int32), jnp.int32(guard))
    np.testing.assert_array_equal(np.asarray(rounded, np.int64), expected)


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
@pytest.mark.parametrize("guard", [0, 3, 7])
@pytest.mark.parametrize(("code", "kind"), [("2x2", "dense"), ("1x8", "stem_7x7_stride_4"), ("8x4", "grouped")])
def test_sums_of_steps_are_rounded_after_time_has_passed(code, kind, guard, arithmetic):
    """Spikes take fewer planes than levels: weights so large that the words of both are full, cut once or each time."""
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    code, random = SpikeCode.parse(code), np.random.default_rng(guard)
    most = largest_that_fits(size * size * fan_in, code.max_level, arithmetic.current_bits, guard)
    most = min(most, (2**31 - 1 << guard) // (code.max_level * size * size * fan_in))
    kernel = random.integers(-most, most + 1, (size, size, fan_in, features)).astype(np.int32)
    kernel[..., 0], kernel[..., -1] = most, -most
    levels = random.integers(0, code.max_level + 1, (3, *grid, channels))
    levels[0] = code.max_level
    expected = (2 * slow_conv(levels, kernel, stride).astype(np.int64) + 2**guard) >> (guard + 1)

    def charged(kernel, planes):
        def linear_map(x):
            return integer_sums(x, kernel, stride, code.max_level, arithmetic, 1, planes)

        return expg_charge(linear_map, code.encode(jnp.asarray(levels)), code).rounded(jnp.int32(guard))

    for cut_once in (None, planes_of(kernel, code.max_level, arithmetic, 1)):
        np.testing.assert_array_equal(jax.jit(charged)(kernel, cut_once), expected)


def test_planes_of_spikes_meet_no_levels():
    kernel, x = np.ones((3, 3, 3, 4), np.int32), jnp.zeros((1, 4, 4, 3))
    for_spikes = planes_of(kernel, 255, Arithmetic(), 1)
    with pytest.raises(ValueError, match=r"planes for numbers up to 1, but up to 255 arrive: cut them for those"):
        integer_sums(x, kernel, 1, 255, Arithmetic(), planes=for_spikes)


def test_planes_of_one_machine_are_not_multiplied_as_those_of_another():
    kernel, x = np.ones((3, 3, 3, 4), np.int32), jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"planes of float32, but tpu multiplies others: cut them for it"):
        integer_sums(x, kernel, 1, 6, Arithmetic(31, "tpu"), planes=planes_of(kernel, 6, Arithmetic(31, "cpu")))


def test_a_step_of_spikes_takes_fewer_planes_than_levels():
    kernel = np.ones((3, 3, 3, 4), np.int32)
    for bits, of_levels, of_spikes in ((31, 3, 2), (24, 2, 1)):
        for number, arriving in ((of_levels, None), (of_levels, 255), (of_spikes, 1)):
            assert len(planes_of(kernel, 255, Arithmetic(bits, "cpu"), arriving).parts) == number


def test_as_many_guard_bits_as_words_hold():
    for total, largest, fan_in, bits, guard in (
        (2**36 - 2**25, 2**20, 9 * 128, 31, 7),  # two planes of 24 and 12 bits
        (2**24, 2**20, 9 * 128, 24, 7),  # one plane
        (2**31 - 2**7 - 1, 2**20, None, 31, 7),  # one word
    ):
        assert sums_fit(total, largest, fan_in, 6, bits, guard)
        assert not sums_fit(total * 2, largest, fan_in, 6, bits, guard)
    assert not sums_fit(1, 1, 9, 6, 31, 8)
    assert not sums_fit(1, 1, 9, 6, 31, -1)
    assert not sums_fit(1, 2**31, 9, 6, 31, 0)


# --- the self-test ----------------------------------------------------------------------------------------------------


def winograd(x, weights):
    """F(2x2, 3x3), emulated in float32: what a library may put in place of a 3x3 convolution."""
    b = jnp.float32([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    g = jnp.float32([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    a = jnp.float32([[1, 1, 1, 0], [0, 1, -1, -1]])
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = jnp.stack([
        jnp.stack([padded[:, i : i + 4, j : j + 4] for j in range(0, width, 2)], 1) for i in range(0, height, 2)
    ], 1)  # [B, H/2, W/2, 4, 4, C]  # fmt: skip
    left = jnp.einsum("ik,bhwklc,jl->bhwijc", b, tiles, b, precision="highest")
    right = jnp.einsum("ik,klcd,jl->ijcd", g, weights, g, precision="highest")
    summed = jnp.einsum("bhwijc,ijcd->bhwijd", left, right, precision="highest")
    out = jnp.einsum("ik,bhwkld,jl->bhwijd", a, summed, a, precision="highest")  # [B, H/2, W/2, 2, 2, D]
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def fourier(x, weights):
    """The same by Fourier transforms."""
    height, width = x.shape[1:3]
    size = (height + 2, width + 2)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    spectrum = jnp.einsum("bhwc,hwcd->bhwd", jnp.fft.fft2(padded, size, (1, 2)),
                          jnp.conj(jnp.fft.fft2(weights, size, (0, 1))))  # fmt: skip
    return jnp.fft.ifft2(spectrum, size, (1, 2)).real[:, :height, :width]


SHAPES = [((2, 8, 8, 4), (3, 3, 4, 4)), ((2, 8, 8, 64), (3, 3, 64, 16)), ((2, 4, 6, 3), (3, 3, 3, 8))]


@pytest.mark.parametrize(("images", "kernel"), SHAPES, ids=str)
@pytest.mark.parametrize("max_level", [1, 6, 255])
def test_other_algorithms_fail_the_self_test(images, kernel, max_level):
    random = np.random.default_rng(0)
    x, weights = random.integers(0, 7, images), random.integers(-3, 4, kernel)
    for other in (winograd, fourier):  # they are convolutions: small numbers come out right
        np.testing.assert_allclose(other(jnp.float32(x), jnp.float32(weights)), slow_conv(x, weights, 1), atol=0.05)
        assert not selftest.proves(other, images, kernel, 1, max_level, "float32")


@pytest.mark.parametrize("operand_type", ["float32", "bfloat16"])
@pytest.mark.parametrize(("images", "kernel"), SHAPES, ids=str)
@pytest.mark.parametrize("max_level", [1, 6, 255])
def test_sums_of_products_pass_the_self_test(images, kernel, max_level, operand_type):
    for stride in (1, 2):
        taps = functools.partial(by_taps, stride=stride, precision="highest")
        assert selftest.proves(taps, images, kernel, stride, max_level, operand_type)
        assert selftest.is_plain("cpu", images, kernel, stride, max_level, operand_type)


def test_operands_cut_to_bfloat16_fail_the_self_test():
    """As a backend would that takes float32 for less than it is."""

    def careless(x, weights):
        cut_off = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, weights))
        return convolve(*cut_off, 1, jnp.float32, "highest")

    assert not selftest.proves(careless, (2, 8, 8, 4), (3, 3, 4, 4), 1, 6, "float32")


def test_data_of_the_self_test_come_near_the_bound_and_stay_within():
    for max_level in (1, 6, 255):
        x, weights = selftest.adversarial((2, 8, 8, 16), (3, 3, 16, 8), max_level, "float32")
        worst = np.abs(weights).reshape(-1, 8).sum(0) * max_level
        assert worst.max() <= EXACT
        assert worst.max() > EXACT / 2
        assert x.max() == max_level


def test_a_backend_that_is_not_here_and_one_that_fails_are_computed_by_taps(monkeypatch):
    assert not selftest.is_plain("tpu", (2, 8, 8, 4), (3, 3, 4, 4), 1, 6, "bfloat16")
    kernel = weights_at_the_bound((3, 3, 4, 4), 6, 31)
    x = jnp.asarray(np.random.default_rng(1).integers(0, 7, (2, 8, 8, 4)))

    def operations(arithmetic):
        program = jax.make_jaxpr(lambda x: integer_conv(x, kernel, 1, 6, arithmetic))(x)
        return {e.primitive.name for e in program.eqns}

    assert "conv_general_dilated" in operations(Arithmetic())
    assert "conv_general_dilated" not in operations(Arithmetic(backend="tpu"))
    monkeypatch.setattr(planes, "is_plain", lambda *_: False)
    assert "conv_general_dilated" not in operations(Arithmetic())
    np.testing.assert_array_equal(integer_conv(x, kernel, 1, 6, Arithmetic()), slow_conv(np.asarray(x), kernel, 1))
