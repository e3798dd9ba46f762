"""Members of one program: keys, plain runs, continued runs, own data; and what scripts print and draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.runtime import cli, loop, plots
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.members import MembersConfig, cross_rates, train_members, with_data


@dataclasses.dataclass(frozen=True)
class Config(MembersConfig):
    """Fit a line."""

    out: str = "runs/line"
    seeds: int = 3
    steps: int = 12
    sizes: tuple[int, ...] = (1, 2)


QUIET = {"progress": False, "chunk": 4}


def pull_learner():
    """Pull w [2] towards the frozen vector; a batch, where there is one, moves the target."""

    def loss(params, frozen, batch, key, hparams):
        target = frozen if batch is None else frozen + batch
        return jnp.sum((params["w"] - target) ** 2), {}

    learner = make_gradient_learner(lambda key: {"w": jax.random.normal(key, (2,))}, loss, lambda key: 0)
    with_zero = lambda state, batch=None, frozen=None: learner.step(
        state, jnp.zeros(2) if batch is None else batch, frozen
    )
    return learner._replace(step=with_zero)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_array_equal(x, y)


def test_keys_are_split_from_the_seed_and_flags_have_help(capsys):
    config = Config(seed=5)
    same(config.keys(), jax.random.split(jax.random.key(5), 3))
    same(config.keys(1), jax.random.split(jax.random.key(6), 3))
    assert cli.parse(Config, ["--out", "a", "--resume", "--seed", "2", "--seeds", "4"]) == Config(
        out="a", resume=True, seed=2, seeds=4
    )
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Continue the run in this folder" in text and "Members trained side by side" in text


def test_each_member_is_the_plain_run_of_its_key(program, tmp_path):
    config, learner = Config(out=str(tmp_path / "run")), program.make_learner()
    trained = train_members(learner, program.Hparams(), config, 12, **QUIET)
    assert trained.history["loss"].shape == (12, 3) and trained.seconds > 0
    assert trained.folder.path == tmp_path / "run" and (tmp_path / "run" / "metrics.jsonl").exists()
    for i, key in enumerate(config.keys()):
        state = learner.init(key, program.Hparams())
        state, history = loop.run(learner.step, state, 12, **QUIET)
        np.testing.assert_allclose(trained.history["loss"][:, i], history["loss"], rtol=1e-5)
        np.testing.assert_allclose(trained.state.params["w"][i], state.params["w"], rtol=1e-5)
        same(trained.state.key[i], state.key)


def test_a_continued_run_ends_in_the_same_bits(program, tmp_path):
    config = Config(out=str(tmp_path / "run"))
    train = lambda config: train_members(
        program.make_learner(), program.Hparams(), config, 12, checkpoint_every=4, **QUIET
    )
    whole = train(config)
    written = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    max((tmp_path / "run").glob("checkpoint_*")).unlink()  # as if interrupted before the end
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        train(config)
    again = train(dataclasses.replace(config, resume=True))
    same(again.state, whole.state)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == written


def test_hyperparameters_are_shared_or_each_member_s_own(program, tmp_path):
    rates = jnp.array([0.0, 0.1])
    keys, hparams = cross_rates(Config(seeds=2).keys(), program.Hparams(), [0.0, 0.1])
    np.testing.assert_allclose(hparams.learning_rate, [0.0, 0.0, 0.1, 0.1])
    same(keys, jnp.tile(Config(seeds=2).keys(), 2))
    grid = train_members(
        program.make_learner(), hparams, Config(out=str(tmp_path / "grid")), 4, keys=keys, **QUIET
    )
    own = Config(out=str(tmp_path / "own"), seeds=2)
    rates = program.Hparams(rates)
    pair = train_members(program.make_learner(), rates, own, 4, **QUIET)
    np.testing.assert_allclose(grid.state.params["w"][0], pair.state.params["w"][0], rtol=1e-6)
    np.testing.assert_allclose(grid.state.params["w"][3], pair.state.params["w"][1], rtol=1e-6)
    np.testing.assert_array_equal(
        grid.state.params["w"][0], program.make_learner().init(keys[0], rates).params["w"]
    )


def test_frozen_trees_starts_and_batches(program, tmp_path):
    hparams, start = program.Hparams(0.1), {"w": jnp.zeros((3, 2))}
    train = lambda name, **more: train_members(
        pull_learner(), hparams, Config(out=str(tmp_path / name)), 60, params=start, **more, **QUIET
    ).state.params["w"]
    targets = jnp.arange(6.0).reshape(3, 2) / 5
    np.testing.assert_allclose(train("own", frozen=targets), targets, atol=0.1)
    shared = train("shared", frozen=targets[2], frozen_axis=None)
    np.testing.assert_allclose(shared, jnp.stack([targets[2]] * 3), atol=0.1)
    rows = lambda begin, count: np.ones((count, 2), np.float32)
    moved = train("rows", frozen=targets, batches=rows)
    np.testing.assert_allclose(moved, targets + 1, atol=0.2)
    assert (tmp_path / "own" / "frozen.json").exists()


def test_members_may_have_data_of_their_own(program, tmp_path):
    def make_learner(data):
        def loss(params, frozen, batch, key, hparams):
            return jnp.mean((params["w"] - batch) ** 2), {}

        return make_gradient_learner(lambda key: {"w": jnp.zeros(())}, loss, lambda key: data)

    data = jnp.array([[0.5, 0.5], [1.0, 1.0], [-1.0, 1.0]])
    config = Config(out=str(tmp_path / "run"))
    state = train_members(
        with_data(make_learner), program.Hparams(0.1), config, 60, frozen=data, **QUIET
    ).state
    np.testing.assert_allclose(state.params["w"], [0.5, 1.0, 0.0], atol=0.1)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"seeds": 0}, {}, "seeds must be at least 1; got seeds=0"),
        (
            {},
            {"params": {"w": jnp.zeros(3)[0]}},
            r"leaf of params must lead with .* 3 members; got shape \(\)",
        ),
        ({}, {"frozen": jnp.zeros((2, 2))}, r"leaf of frozen .* got shape \(2, 2\)"),
        ({}, {"hparams": jnp.zeros(2)}, r"leaf of hparams .* got shape \(2,\)"),
        ({}, {"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(program, tmp_path, change, more, message):
    config = Config(out=str(tmp_path / "run"), **change)
    hparams = program.Hparams(more.pop("hparams", 0.1)) if "hparams" in more else program.Hparams()
    with pytest.raises(ValueError, match=message):
        train_members(program.make_learner(), hparams, config, 12, **QUIET, **more)


def test_a_learner_that_refuses_leaves_no_folder(program, tmp_path):
    learner = program.make_learner()

    def step(state, batch=None, frozen=None):
        raise ValueError("sizes do not fit")

    with pytest.raises(ValueError, match="sizes do not fit"):
        train_members(
            learner._replace(step=step), program.Hparams(), Config(out=str(tmp_path / "run")), 4, **QUIET
        )
    assert not (tmp_path / "run").exists()


def test_fields_have_least_values():
    Config().require(seeds=3, sizes=1)
    with pytest.raises(ValueError, match="steps must be at least 13; got steps=12"):
        Config().require(seeds=1, steps=13)
    with pytest.raises(ValueError, match=r"sizes must be at least 2; got sizes=\(1, 2\)"):
        Config().require(sizes=2)
    with pytest.raises(ValueError, match=r"sizes must be at least 0; got sizes=\(\)"):
        Config(sizes=()).require(sizes=0)


def test_parts_of_a_run_are_made_once(tmp_path):
    calls = []

    def make(x):
        calls.append(x)
        return {"x": np.full(2, x, np.float32)}

    folder = open_run(tmp_path / "run", Config())
    assert folder.once("part.json", make, 0.1) == folder.once("part.json", make, 7.0)
    assert calls == [0.1] and folder.once("part.json", make)["x"] == np.full(2, 0.1, np.float32).tolist()
    assert folder.sub("a b, c").path.name == "a_b_c"


def test_curves_bars_lines_and_levels_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    x, ys = np.arange(3), np.random.default_rng(0).normal(size=(3, 4))
    for bars in (False, True):
        path = tmp_path / f"{bars}.png"
        curves = {"members": (x, ys), "line": (x, ys[:, 0])}
        plots.save_curves(path, "x", "y", curves, bars=bars, dashed=["line"], levels={"zero": 0.0}, xticks=x)
        assert path.stat().st_size > 5_000
    with pytest.raises(ValueError, match=r"expected x \[n\] and ys \[n, members\]"):
        plots.save_curves(tmp_path / "bad.png", "x", "y", {"members": (x, ys.T)})


def test_an_interruption_promises_only_what_there_is(capsys):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        """Nothing to continue."""

    def interrupted(config):
        raise KeyboardInterrupt

    for config, line in (
        (Config, "interrupted; the same command with --resume continues from the last checkpoint\n"),
        (Plain, "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(config, interrupted, [])
        assert stop.value.code == 130 and capsys.readouterr().err == line
