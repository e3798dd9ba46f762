import json

import numpy as np
import pytest

from jaxrl_align.data.mixtures import epochs_per_source
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

mixture = load("mixture")


def test_the_stand_ins_are_read_as_often_as_gpt3_read_its_sources():
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
    table = np.array([list(row.values()) for row in mixture.table_of_gpt3().values()])
    np.testing.assert_allclose(table[:2], [[410, 0.6, 0.44, 0.43], [19, 0.22, 3.47, 3.44]], atol=0.005)
    assert mixture.epochs_of(made, 50).keys() == read.keys()


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
    rows, differences, _ = result["tables"].values()
    assert list(rows) == list(domains) and len(differences) == 8
    row = rows["domain 1"]
    by_size, published, fresh = (
        row[f"bits a byte, {name}"]["value"] for name in ("by size", "published", "published, new text")
    )
    assert published < by_size < 8 and row["epochs, published"] > 3 > 1 > row["epochs, by size"]
    found = [cell["value"] for cell in differences["domain 1"].values()]
    np.testing.assert_allclose(found, [published - by_size, published - fresh, fresh - by_size], atol=1e-6)
    (headline,) = result["headline"].items()
    assert headline[0].startswith("domain 1,") and headline[1]["value"] == found[0]
    (baseline,) = result["baselines"].values()
    assert baseline["value"] == found[1]
    published = [row["published less by size"] for row in differences.values()][:5]
    assert list(result["checks"].values())[:2] == [
        all(published[i]["high"] < 0 for i in (1, 2, 4)),
        all(published[i]["low"] > 0 for i in (0, 3)),
    ]
    assert (tmp_path / "run" / "loss_per_domain.png").stat().st_size > 5_000


def test_the_verdict_is_that_of_each_domain_and_of_both_means():
    near = lambda value: Interval(value, value - 0.01, value + 0.01, "t")
    published = {"a": near(-0.1), "b": near(-0.2), "c": near(0.1)}
    published |= {"all domains alike": near(-0.05), "all bytes alike": near(0.05)}
    repeats = {"a": near(0.05), "b": near(-0.2), "c": near(0.3)}
    judged = lambda *x: list(mixture.judge(["a", "b"], ["c"], *x).values())
    assert judged(published, repeats) == [True] * 5
    turned = {name: near(-x.value) for name, x in published.items()}
    assert judged(turned, repeats) == [False, False, True, False, False]
    level = {"all domains alike": near(-0.005), "all bytes alike": near(0.005)}
    assert judged(published | {"c": near(0.005)}, repeats)[:2] == [True, False]
    assert judged(published | level, repeats) == [True] * 3 + [False] * 2
    assert judged(published | {"b": near(0.005)}, repeats | {"a": near(0.095)})[:3] == [False, True, False]


def test_means_weigh_domains_as_they_are_named():
    bits = {"a": np.array([[0.0, 0, 0, 0, 5.0]] * 2), "b": np.zeros((2, 5))}
    found = mixture.compare(list("vwxyz"), bits, "a", "b")
    assert found["z"].value == 5 and found["all domains alike"].value == pytest.approx(1)
    assert found["all bytes alike"].value == pytest.approx(5 * 3 / 499)
    assert found["by published weight"].value == pytest.approx(5 * 0.03 / 1.01)
    assert mixture.compare(list("vwxyz"), bits, "b", "a")["z"].value == -5
