"""Surrogate gradients: a step forward, a bump of area 1 backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.spiking import SURROGATES, heaviside


def slope(x, surrogate, width=1.0):
    return np.asarray(jax.vmap(jax.grad(lambda v: heaviside(v, surrogate, width)))(jnp.asarray(x, jnp.float32)))


def test_names():
    assert SURROGATES == ("triangle", "arctan", "sigmoid")


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_forward_is_the_step_function_with_its_edge(surrogate):
    x = jnp.array([-1.0, -1e-7, -0.0, 0.0, 1e-7, 3.0])
    found = heaviside(x, surrogate)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [0, 0, 1, 1, 1, 1])
    assert heaviside(x.astype(jnp.bfloat16), surrogate).dtype == jnp.bfloat16


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_bump_has_area_one_is_even_and_peaks_at_one_over_width(surrogate, width):
    reach = 3000.0 if surrogate == "arctan" else 30.0
    x = np.concatenate(
        [np.linspace(-reach, -5, 20001), np.linspace(-5, 5, 20001)[1:], np.linspace(5, reach, 20001)[1:]]
    )
    y = slope(x, surrogate, width).astype(np.float64)
    # What lies outside ±3000 of the arctan bump is 2w/(π²·3000) at most.
    np.testing.assert_allclose(np.trapezoid(y, x), 1.0, atol=3e-4)
    np.testing.assert_allclose(y, y[::-1], rtol=1e-5)
    assert (y >= 0).all()
    np.testing.assert_allclose(y.max(), 1 / width, rtol=1e-6)
    assert abs(x[np.argmax(y)]) < 1e-9


def test_known_values():
    x = [-1.0, -0.25, 0.0, 0.5]
    np.testing.assert_allclose(slope(x, "triangle"), [0.0, 0.75, 1.0, 0.5])
    np.testing.assert_allclose(slope(x, "triangle", 2.0), [0.25, 0.4375, 0.5, 0.375])
    np.testing.assert_allclose(slope(x, "arctan"), [0.0919995, 0.6184862, 1.0, 0.2884004], rtol=1e-5)
    np.testing.assert_allclose(slope(x, "sigmoid"), [0.0706508, 0.7864477, 1.0, 0.4199743], rtol=1e-5)


def test_gradient_flows_in_forward_mode_too():
    _, tangent = jax.jvp(heaviside, (jnp.float32(0.25),), (jnp.float32(2.0),))
    assert float(tangent) == 1.5


def test_unknown_name_is_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown surrogate 'relu': known are triangle, arctan, sigmoid"):
        heaviside(jnp.zeros(2), "relu")
