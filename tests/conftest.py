"""Settings of the whole suite: implicit rank promotion is an error, so a lost axis cannot broadcast away."""

import signal

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# For what modules compile while they are imported; each test sets it for itself.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_runtest_setup(item):
    """Compile without most optimisations, which take two thirds of the time of tests that compile more than
    they run; `optimised` tests run for long, or measure what the compiler makes of a program."""
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimised") is None)


@pytest.fixture(scope="session")
def real_folder():
    """Where `make model` writes, or what $JAXRL_ALIGN_MODEL names; a test that needs it is slow."""
    from jaxrl_align.runtime.huggingface import find_model

    pytest.importorskip("safetensors")
    try:
        return find_model()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_model(real_folder):
    """The model in that folder."""
    from jaxrl_align.runtime.huggingface import load_model

    return load_model(real_folder)


@pytest.fixture(autouse=True)
def interruptible():
    """Take signals as Python does, even where the tests were started to ignore them, as by `nohup`."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    former = {number: signal.signal(number, handling) for number, handling in usual.items()}
    yield
    for number, handling in former.items():
        signal.signal(number, handling)
