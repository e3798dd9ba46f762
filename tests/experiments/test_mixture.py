import json

import numpy as np
import pytest

from jaxrl_align.data.mixtures import epochs_per_source
from jaxrl_align.data.tokens.tokenizers import byte_tokenizer
from tests.experiments.loading import load

mixture = load("mixture")


def test_the_stand_ins_are_read_as_often_as_gpt3_read_its_sources(capsys):
    """Sizes are GPT-3's, so the epochs are; new text is never read twice, by size each is read alike."""
    domains = {str(i): np.arange(410 * 50) for i in range(5)}
    made = mixture.make_mixtures(domains, unit=50)
    read = {
        name: epochs_per_source(weights, [len(tokens) for tokens in sources], 300 * 50)
        for name, (sources, weights) in made.items()
    }
    np.testing.assert_allclose(read["by size"], 300 / 499)
    np.testing.assert_allclose(1.01 * read["published"], [0.44, 3.47, 2.0, 0.44, 3.0], atol=0.005)
    assert read["published, new text"].max() <= 1
    with pytest.raises(ValueError, match="1 must hold .* bytes to learn from; got 100; lower unit"):
        mixture.make_mixtures(domains | {"1": np.arange(100)}, unit=50)
    mixture.print_lecture()
    out = capsys.readouterr().out
    assert "sum to 1.01" in out and "0.44    0.43" in out and "3.47    3.44" in out


def test_a_domain_is_split_without_loss_or_repeats():
    text = "".join(chr(33 + i % 90) * 500 for i in range(120))
    train, held_out = mixture.split(text, mixture.Config(held_out=6_000))
    assert len(held_out) == 6_000
    whole = np.sort(np.asarray(byte_tokenizer().encode(text)))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), whole)


@pytest.mark.slow
def test_mixture_in_miniature(tmp_path, monkeypatch):
    """Easy domains of one letter pair each: the one that is drawn more often is known better."""
    domains = {f"domain {i}": (a + b) * 15_000 for i, (a, b) in enumerate(("ab", "cd", "ef", "gh", "ij"))}
    monkeypatch.setattr(mixture, "read_domains", lambda: domains)
    mixture.main(
        mixture.Config(
            unit=50,
            held_out=2_000,
            seeds=2,
            layers=1,
            heads=2,
            width=16,
            context=8,
            batch_size=8,
            warmup_steps=5,
            learning_rate=1e-2,
            out=str(tmp_path / "run"),
        )
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    by_size, published, fresh = (np.array(x) for x in result["bits_per_byte"].values())
    assert by_size.shape == published.shape == fresh.shape == (2, 5)
    assert (published[:, 1] < by_size[:, 1]).all() and (published < 8).all()
    assert (tmp_path / "run" / "loss_per_domain.png").stat().st_size > 5_000
