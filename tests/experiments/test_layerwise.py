import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.images import Images, Split
from jaxrl_align.nets import make_layered_net
from tests.experiments.loading import load

pytest.importorskip("sklearn")
starts, reports = load("layerwise_starts"), load("layerwise_report")
SMALL = {"seeds": 2, "tuning_seeds": 1, "width": 4, "pretrain_epochs": 1, "batch_size": 200}
ONE_RATE = SMALL | {"finetune_rates": (0.1,)}


def read(folder):
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for figure in result["figures"]:
        assert (folder / figure).stat().st_size > 5_000
    return result


def kept_of(*errors, members=3, items=20, train=0.0, **fields):
    """Return what is kept of ways that err on so many of the 20 images, whichever member."""
    wrong = [["1" * n + "0" * (items - n)] * members for n in errors]
    return {"wrong": wrong, "train": [[train] * members] * len(errors), "rate": [0.1] * len(errors)} | fields


@pytest.mark.slow
def test_layerwise_pretraining_in_miniature(tmp_path, capsys):
    """Every figure is written, and a resumed run keeps the depths that are done."""
    experiment = load("layerwise_pretraining")
    config = experiment.Config(depths=(1, 2), finetune_epochs=1, out=str(tmp_path / "run"), **ONE_RATE)
    experiment.main(config)
    folder = tmp_path / "run"
    result = read(folder)
    assert result["rows"] == ["C3", "C5", "C6", "C7"] and len(result["figures"]) == 3
    assert result["tables"].keys() >= {"depth 1: error [%], differences paired"}
    kept = json.loads((folder / "depth_2.json").read_text())
    assert np.shape(kept["error"]) == (3, 1, 2) and np.shape(kept["wrong"]) == (3, 2)
    assert all(len(row) == 359 for way in kept["wrong"] for row in way)
    assert len(kept["reconstruction_loss"]) == 2
    written = (folder / "depth_1.json").stat().st_mtime_ns
    experiment.main(experiment.Config(**vars(config) | {"resume": True}))
    assert (folder / "depth_1.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_tiny_labels_in_miniature(tmp_path):
    experiment = load("tiny_labels")
    config = experiment.Config(
        labels=(10, 200), depth=1, finetune_steps=2, out=str(tmp_path / "run"), **ONE_RATE
    )
    experiment.main(config)
    assert {path.name for path in (tmp_path / "run").glob("*_*0.json")} == {
        f"{era}_{num}.json" for era in ("2006", "modern") for num in (10, 200)
    }
    result = read(tmp_path / "run")
    assert [name.split(":")[0] for name in result["headline"]] == ["2006", "modern"]
    assert len(result["figures"]) == 4 and len(result["tables"]) == 8


@pytest.mark.slow
def test_pretraining_sources_in_miniature(tmp_path, monkeypatch):
    """With blank images in place of MNIST's, which need a file."""
    pytest.importorskip("PIL")
    experiment = load("pretraining_source")
    blank = Images(np.zeros((2_000, 784), np.float32), np.zeros(2_000, np.int32))
    monkeypatch.setattr(experiment, "load_mnist", lambda: Split(blank, blank))
    config = experiment.Config(
        labels=(10,), depth=1, finetune_steps=2, beside=None, out=str(tmp_path / "run"), **ONE_RATE
    )
    experiment.main(config)
    result = read(tmp_path / "run")
    table = result["tables"]["2006, 10 labels: error [%], differences paired"]
    assert tuple(table) == experiment.SOURCES and table["none"]["- none"] == ""
    assert table["white noise"]["- none"]["kind"] == "t"


@pytest.mark.slow
def test_overfitting_in_miniature(tmp_path):
    experiment = load("overfitting")
    sizes = {"labels": (10, 100), "widths": (2, 4, 8), "steps": 4}
    experiment.main(experiment.Config(out=str(tmp_path / "run"), **sizes, **SMALL))
    result = read(tmp_path / "run")
    row = result["tables"]["10 labels: error [%], differences paired"]["4 units"]
    assert row["weights"] == 64 * 4 + 4 + 4 * 10 + 10
    assert row["test less the widest's"]["kind"] == "t" and row["held-out loss [nats]"]["value"] > 0
    assert len(result["checks"]) == 4
    for wrong in ({"widths": (4, 2)}, {"labels": (50,)}):
        with pytest.raises(ValueError, match=r"must be two or more in rising order"):
            experiment.main(experiment.Config(out=str(tmp_path / "other"), **wrong))


@pytest.mark.parametrize("labels", [(9,), (100, 1151)])
def test_tiny_labels_refuses_too_few_and_too_many(tmp_path, labels):
    experiment = load("tiny_labels")
    with pytest.raises(ValueError, match="from 10, one label per class, to 1150"):
        experiment.main(experiment.Config(labels=labels, out=str(tmp_path / "run"), **ONE_RATE))
    assert not (tmp_path / "run").exists()
    for unordered in ((50, 10), (200, 500)):
        with pytest.raises(ValueError, match="labels must be in rising order, the first at most 100"):
            experiment.main(experiment.Config(labels=unordered, out=str(tmp_path / "run"), **ONE_RATE))


def test_every_member_draws_its_own_images():
    """Of 20 images 5 are held out, by each member others; labels come from what is left alone."""
    x = np.arange(20, dtype=np.float32)[:, None]
    split = Split(Images(x, np.arange(20, dtype=np.int32) % 2), Images(x[:3], np.zeros(3, np.int32)))
    config = starts.StartsConfig(out="none", seeds=2, tuning_seeds=1, validation_share=0.25, seed=7)
    data = starts.draw_members(config, split, 4)
    assert data.x.shape == (3, 15, 1) and data.labelled[0].shape == (3, 4, 1)
    held_out = [set(np.ravel(rows)) for rows in data.validation[0]]
    assert len(set(map(frozenset, held_out))) == 3
    for rows, labelled, out in zip(data.x, data.labelled[0], held_out, strict=True):
        assert set(np.ravel(rows)) | out == set(range(20)) and len(out) == 5
        assert set(np.ravel(labelled)) <= set(np.ravel(rows))
    np.testing.assert_array_equal(data.labelled[1], data.labelled[0][..., 0] % 2)
    assert np.sum(data.labelled[1], 1).tolist() == [2, 2, 2], "as many of each class"
    assert starts.draw_members(config, split).labelled[0].shape == (3, 15, 1)
    assert len(config.member_keys()) == 3 and data.test[0].shape == (3, 1)
    moved = starts.draw_members(starts.StartsConfig(**vars(config) | {"seed": 8}), split)
    np.testing.assert_array_equal(moved.x[0], data.x[1])
    with pytest.raises(ValueError, match="must leave both parts some of 20; got 1.0"):
        starts.hold_out(20, 1.0, 0)


def test_a_net_is_judged_on_three_sets():
    """The net answers by the larger of two inputs; the loss is that of logits 1 apart."""
    net = make_layered_net(2, (), 2)
    params = {"layers": (), "head": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
    x, right = jnp.array([[1.0, 0], [0, 1]]), jnp.array([0, 1])
    data = starts.Data(x, (x, right), (x, jnp.array([0, 0])), (x, jnp.array([1, 1])))
    judged = starts.judge_net(net, params, data)
    assert judged.train_error == 0 and judged.validation_error == 50
    assert judged.validation_loss == pytest.approx(
        np.log(1 + np.exp(-1)) / 2 + np.log(1 + np.e) / 2, rel=1e-5
    )
    assert judged.wrong.tolist() == [True, False]


def test_rates_are_chosen_by_errors_and_ties_by_loss():
    """The members' means are 3 2 2 and 5 5 9 per cent; a rate whose loss is nan is out."""
    error = np.array([[[4, 2, 1], [5, 5, 9]], [[2, 2, 3], [5, 5, 9]]])
    loss = np.ones((2, 2, 3))
    loss[:, 0, 1], loss[:, 1, 0] = 0.9, 0.8
    assert reports.choose_rates(error, loss).tolist() == [1, 0]
    loss[:, 0, 2] = 0.5
    assert reports.choose_rates(error, loss).tolist() == [2, 0]
    loss[0, 0, 2] = loss[0, 1, 0] = np.nan
    assert reports.choose_rates(error, loss).tolist() == [1, 1]


def test_what_is_kept_is_of_the_reported_members_at_the_rate_of_the_others():
    config = starts.StartsConfig(out="none", seeds=2, tuning_seeds=1, finetune_rates=(0.1, 0.2))
    validation = jnp.array([[[0.0, 9]], [[0, 9]], [[7, 3]]])
    train = jnp.array([[[1.0, 2]], [[3, 4]], [[5, 6]]])
    wrong = jnp.array([[[[1, 1], [1, 0]]], [[[1, 1], [0, 1]]], [[[1, 1], [0, 0]]]], bool)
    kept = reports.keep(config, starts.Judged(validation, jnp.ones((3, 1, 2)), train, wrong))
    assert kept["rate"] == [0.2] and kept["wrong"] == [["10", "01"]]
    np.testing.assert_array_equal(kept["train"], [[2, 4]])
    np.testing.assert_array_equal(kept["validation"], [[7, 3]])
    np.testing.assert_array_equal(kept["error"], [[[100, 100], [50, 50]]])
    np.testing.assert_array_equal(reports.wrong_images(kept), [[[100, 0], [0, 100]]])
    row = reports.every_rate(config, kept, ("way",))["way"]
    assert row["0.1: test"].value == 100 and row["0.2: test"].value == 50
    assert (row["0.1: choosing"], row["0.2: choosing"]) == (7, 3)
    table = reports.tabulate(kept, ("way",), ("way",))["way"]
    assert table["test error"].value == 50 and table["- way"] == ""
    assert table["rate"] == "0.2" and table["training error"] == 3


def test_the_verdict_on_layers_is_that_of_paired_errors():
    """Of 20 images the random start has 15 wrong with two layers, 4 with one."""
    judge = load("layerwise_pretraining").judge
    errors = lambda *n: reports.wrong_images(kept_of(*n))
    assert list(judge({1: errors(8, 4, 1), 2: errors(18, 8, 1)}).values()) == [True] * 4
    assert list(judge({1: errors(4, 4, 4), 2: errors(15, 15, 15)}).values()) == [False] * 4
    assert list(judge({1: errors(1, 4, 8), 2: errors(18, 4, 4)}).values()) == [True, True, False, False]


def test_the_verdict_on_few_labels_is_that_of_both_eras():
    experiment = load("tiny_labels")
    good = {10: kept_of(15, 15, 2), 100: kept_of(12, 12, 2), 1000: kept_of(1, 1, 1, train=9.0)}
    level = {num: kept_of(3, 3, 3) for num in good}
    assert list(experiment.judge({"2006": good}).values()) == [True] * 4
    assert list(experiment.judge({"2006": good, "modern": level}).values()) == [True] * 4 + [False]
    assert list(experiment.judge({"2006": level}).values()) == [True] + [False] * 3
    unfitted = good | {100: kept_of(12, 12, 2, train=2.0)}
    assert list(experiment.judge({"2006": unfitted}).values()) == [False] + [True] * 3
    thousand = {10: kept_of(15, 15, 2), 200: kept_of(9, 9, 2), 1000: kept_of(20, 9, 1, train=12.0)}
    assert list(experiment.judge({"2006": thousand}).values()) == [True] * 4, (
        "held against 200, which is fitted"
    )
    late = {10: kept_of(15, 3, 3), 1000: kept_of(20, 1, 1)}
    assert list(experiment.judge({"2006": late}).values()) == [True, True, False, False]
    assert experiment.few(late).mean() == pytest.approx(100 * 7 / 20), "1000 are not few"


def test_the_verdict_on_sources_is_that_of_paired_errors():
    """Errors of none, noise, shuffled, photographs, MNIST, the digits, MNIST with labels, of 20 images."""
    experiment = load("pretraining_source")
    errors = lambda *n: reports.wrong_images(kept_of(*n))
    claimed, level = errors(19, 18, 18, 10, 2, 1, 2), errors(*[9] * 7)
    assert list(experiment.judge({"2006": claimed}).values()) == [True] * 5
    assert list(experiment.judge({"2006": level}).values()) == [False, False, True, False, False]
    both = list(experiment.judge({"2006": claimed, "modern": level}).values())
    assert both == [True] * 5 + [False] * 2
    noise = errors(19, 1, 10, 10, 10, 1, 2)
    assert list(experiment.judge({"2006": noise}).values()) == [True, False, False, False, False]


def test_shuffled_photographs_keep_their_pixels_alone():
    shuffle = load("pretraining_source").shuffle_pixels
    images = np.arange(12.0).reshape(2, 6)
    found = shuffle(images, 0)
    np.testing.assert_array_equal(np.sort(found, 1), images)
    assert (found[0] + 6 != found[1]).any(), "each image in an order of its own"
    np.testing.assert_array_equal(shuffle(images, 0), found)


def test_every_member_draws_its_own_sources():
    pytest.importorskip("PIL")
    experiment = load("pretraining_source")
    mnist = Images(np.linspace(0, 1, 40)[:, None] * np.ones((40, 784), np.float32), np.arange(40) % 10)
    own = np.random.default_rng(0).uniform(size=(2, 5, 64))
    found = experiment.draw_sources(own, mnist, range(3, 5))
    assert found.images.shape == (2, 5, 5, 64) and found.labels.shape == (2, 5)
    np.testing.assert_allclose(found.images[:, 4], own, rtol=1e-6)
    rows = np.round(np.asarray(found.images[:, 3, :, 0]) * 39).astype(int)
    np.testing.assert_array_equal(rows % 10, found.labels)
    assert set(rows[0]) != set(rows[1])
    photographs, shuffled = np.asarray(found.images[:, 2]), np.asarray(found.images[:, 1])
    np.testing.assert_array_equal(np.sort(shuffled, -1), np.sort(photographs, -1))
    assert (shuffled != photographs).any() and (photographs[0] != photographs[1]).any()
    assert 0.4 < found.images[:, 0].mean() < 0.6 and found.images[:, 0].std() == pytest.approx(
        12**-0.5, abs=0.03
    )


def test_sources_are_in_the_order_of_their_names():
    """Layers of no source are the first ones, and of blank images; those of equal sources are equal."""
    experiment = load("pretraining_source")
    config = experiment.Config(out="none", depth=1, **ONE_RATE)
    _, pretrain = experiment.make_pretrain(config)
    images = np.random.default_rng(0).uniform(size=(5, 200, 64)).astype(np.float32)
    images[4], images[experiment.MNIST - 1] = images[0], 0
    sources = experiment.Sources(jnp.asarray(images), jnp.arange(200) % 10)
    kernel = np.asarray(jax.jit(pretrain)(jax.random.key(0), sources)["layers"][0]["kernel"])
    assert kernel.shape == (7, 64, 4)
    np.testing.assert_array_equal(kernel[experiment.OWN], kernel[experiment.NOISE])
    blank = (experiment.MNIST, experiment.LABELLED, experiment.NONE)
    for i in range(7):
        assert (kernel[i] == kernel[experiment.NONE]).all() == (i in blank), i
    net = starts.make_net(starts.ERAS["2006"], 64, 1, 4)
    first = net.init(jax.random.split(jax.random.key(0), 3)[0])["layers"][0]["kernel"]
    np.testing.assert_array_equal(kernel[experiment.NONE], first)


def test_the_verdict_on_width_is_that_of_gaps():
    """20 images; the narrow net errs on 9 and does not fit its labels, the widest on 8 or 3."""
    experiment = load("overfitting")
    narrow, middle = kept_of(9, train=40.0, validation=[[45.0]]), kept_of(3, validation=[[15.0, 12.0]])
    wide = lambda n: kept_of(n, validation=[[40.0]])
    few = {2: narrow, 8: middle, 32: wide(8)}
    assert experiment.gap(narrow).mean() == pytest.approx(5)
    assert experiment.best_narrower(few) == 8 and experiment.beyond(few).value == pytest.approx(25)
    assert experiment.best_narrower(few | {32: wide(8) | {"validation": [[1.0]]}}) == 8
    many = {2: narrow, 8: middle, 32: wide(1)}
    items = lambda found: list(experiment.judge(found).values())
    assert items({50: many, 1000: many}) == [False] * 4
    judged = items(
        {50: {w: longer(k) for w, k in few.items()}, 1000: {w: longer(k) for w, k in many.items()}}
    )
    assert judged == [True] * 4
    near = few | {32: wide(4)}
    assert experiment.beyond(near).value > 0 and items({50: near, 1000: many})[3] is False
    fitted = {w: longer(k) for w, k in (few | {8: wide(8), 32: wide(8) | {"train": [[2.0] * 3]}}).items()}
    assert items({50: fitted, 1000: {w: longer(k) for w, k in many.items()}}) == [False, True, True, False]


def longer(kept):
    """Return the same of 400 images."""
    return kept | {"wrong": [[row * 20 for row in way] for way in kept["wrong"]]}
