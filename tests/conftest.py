"""Settings of the whole suite: implicit rank promotion is an error, so a lost axis cannot broadcast away."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def real_model():
    """The model that `make model` writes, or that $JAXRL_ALIGN_MODEL names; a test that needs it is slow."""
    from jaxrl_align.runtime.huggingface import find_model, load_model

    pytest.importorskip("safetensors")
    try:
        folder = find_model()
    except ValueError as error:
        pytest.skip(str(error))
    return load_model(folder)
