"""Settings of the whole suite: implicit rank promotion is an error, so a lost axis cannot broadcast away."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile a program that another has compiled, or compile it again to continue a run. This
    # process makes the folder; its workers, and the programs that tests start, have it in their environment.
    _compiled = tempfile.mkdtemp(prefix="jaxrl_align_compiled_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402  it reads the environment

jax.config.update("jax_numpy_rank_promotion", "raise")
# Nothing of a test is told by where in Python an operation came from, which takes 5% of its time.
jax.config.update("jax_traceback_in_locations_limit", 0)
# For what modules compile while they are imported; each test sets it for itself.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_ignore_collect(collection_path, config):
    """Import no file without a slow test where slow tests alone are asked for: imports take half a minute."""
    if config.option.markexpr == "slow" and collection_path.suffix == ".py":
        return None if "slow" in collection_path.read_text(encoding="utf-8") else True
    return None


def pytest_collection_modifyitems(items):
    """Freeze what is imported, and look for garbage seldom, which took 7% of the time."""
    hidden = {item.path for item in items if item.get_closest_marker("slow")}
    hidden = {path.name for path in hidden if "slow" not in path.read_text(encoding="utf-8")}
    assert not hidden, f"slow tests must be marked in their own files; {', '.join(hidden)} have none"
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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
