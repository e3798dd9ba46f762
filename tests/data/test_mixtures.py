import numpy as np
import pytest

from jaxrl_align.data.mixtures import FLAN_COLLECTIONS, GPT3_SOURCES, epochs_per_source, normalise_weights


def test_gpt3s_epochs_come_out():
    """Lecture 000 (C10): 0.44, 3.47, 2.0, 0.44 and 3.0 times through, on 300e9 tokens."""
    weights = [source.weight for source in GPT3_SOURCES]
    read = epochs_per_source(weights, [source.tokens for source in GPT3_SOURCES], 300e9)
    np.testing.assert_allclose(read, [0.44, 3.47, 2.0, 0.44, 3.0], atol=0.005)


def test_the_printed_weights_sum_to_101_per_cent_and_are_normalised():
    weights = [source.weight for source in GPT3_SOURCES]
    assert sum(weights) == pytest.approx(1.01)
    np.testing.assert_allclose(normalise_weights(weights), np.array(weights) / 1.01)
    assert normalise_weights(weights).sum() == pytest.approx(1.0)


def test_flans_tasks_sum_to_what_is_published():
    """Lecture 002 (E7): 1,836 tasks; 505 data sets, of which some are counted twice."""
    assert sum(collection.tasks for collection in FLAN_COLLECTIONS) == 1_836
    assert sum(collection.datasets for collection in FLAN_COLLECTIONS) == 505 > 473


@pytest.mark.parametrize(
    "weights, message",
    [([], "finite numbers"), ([1.0, -1.0], "finite"), ([np.nan], "finite"), ([0.0, 0.0], "above 0")],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        normalise_weights(weights)


@pytest.mark.parametrize("tokens", [[1.0], [1.0, 0.0]])
def test_sources_without_a_size_are_refused(tokens):
    with pytest.raises(ValueError, match="every weight needs a source"):
        epochs_per_source([0.5, 0.5], tokens, 10.0)
