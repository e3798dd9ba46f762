"""What a training command keeps of a run that goes wrong: the best, and what was found on the way."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.cli.options import RunOptions
from jaxrl_align.cli.runs import course
from jaxrl_align.runtime import checkpoint
from jaxrl_align.types import Learner, State

OPTIONS = RunOptions(steps=3, every=1, samples=0)
ROWS = {"x": np.zeros((4, 1), np.float32)}


def objective(params, frozen, batch, key, hparams):
    return params["w"].sum(), {}


def make_course(change):
    """Return a course whose step changes its weight so, under a loss that says nothing."""
    init = lambda key, hparams, params=None: State(params, (), jnp.zeros((), jnp.int32), hparams, None, key)

    def step(state, row=None, frozen=None):
        params = {"w": change(state.params["w"], state.step)}
        return state._replace(params=params, step=state.step + 1), {"loss": jnp.float32(1.0)}

    measure = course.make_measure(objective, None, ROWS, 2, None)
    rows = lambda first, steps: {"x": np.zeros((steps, 1), np.float32)}
    part = {"w": jnp.array([5.0])}
    return course.Course(Learner(init, step), None, part, None, rows, measure, "loss", False, ("loss",), None)


def open_folder(tmp_path, resume=False):
    options = RunOptions(steps=3, every=1, samples=0, resume=resume)
    return course.open_folder(str(tmp_path / "out"), {"command": "x"}, options)


def test_held_out_means_are_over_rows_whatever_the_last_batch_holds():
    mean = lambda params, frozen, batch, key, hparams: (batch["x"].mean(), {"seven": jnp.float32(7)})
    rows = {"x": np.array([1.0, 2.0, 6.0], np.float32)}
    measure = course.make_measure(mean, None, rows, 2, None)
    assert measure({}) == {"loss": pytest.approx(3.0), "seven": 7.0}
    tokens = lambda *given: (mean(*given)[0], {"num_tokens": 6.0 - given[2]["x"].mean()})
    assert course.make_measure(tokens, None, rows, 2, None)({}) == {"loss": pytest.approx(1.5)}


def test_a_folder_of_a_run_that_took_no_step_is_removed_and_nothing_else(tmp_path):
    def end(error, out, *files):
        with pytest.raises(type(error)), course.opened_folder(str(out), {"command": "x"}, OPTIONS) as folder:
            for name in ("held_out.json", *files):
                (folder.path / name).write_text("{}")
            raise error

    out, mine = tmp_path / "a" / "out", tmp_path / "mine"
    end(ValueError(), out)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and not out.exists()
    mine.mkdir()
    end(ValueError(), mine)
    assert mine.is_dir() and not list(mine.iterdir())
    (mine / "run").mkdir()
    (mine / "run" / "notes.txt").write_text("mine")
    end(ValueError(), mine)
    assert (mine / "run" / "notes.txt").exists()
    for place, error, files in (
        ("stepped", ValueError(), ["metrics.jsonl"]),
        ("nan", FloatingPointError(), []),
        ("stopped", KeyboardInterrupt(), []),
    ):
        end(error, tmp_path / place, *files)
        assert (tmp_path / place / "run" / "config.json").exists()


def test_weights_that_are_nan_are_judged_and_saved_nowhere(tmp_path):
    spoil = lambda w, step: jnp.where(step == 1, jnp.nan, w - 1.0)
    folder = open_folder(tmp_path)
    with pytest.raises(FloatingPointError, match=r"params/w is nan after 2 steps.*the checkpoint of step 1"):
        course.follow(make_course(spoil), folder, OPTIONS, 3)
    assert json.loads((folder.path / "held_out.json").read_text()).keys() == {"0", "1"}
    assert checkpoint.restore(folder.path / "best", {"w": jnp.zeros(1)})[1] == 1


def test_a_loss_of_a_batch_that_is_nan_is_not_left_out_and_never_the_best(tmp_path):
    odd = make_course(lambda w, step: 0 * w + jnp.where(step == 0, 9.0, 1.0 + step))
    measure = lambda params: {"loss": np.nan if params["w"][0] == 9.0 else float(params["w"][0])}
    outcome = course.follow(odd._replace(measure=measure), open_folder(tmp_path), OPTIONS, 3)
    assert np.isnan(outcome.held_out[1]["loss"]) and outcome.step == 2
    assert course._mean_of_batches("loss", np.array([1.0, np.nan]), np.ones(2)) != 1.0
    assert course._mean_of_batches("rewards/chosen", np.array([1.0, np.nan]), np.array([3.0, 1.0])) == 1.0
    assert course._mean_of_batches("rewards/chosen", np.array([3.0, 6.0]), np.array([2.0, 1.0])) == 4.0
    assert np.isnan(course._mean_of_batches("rewards/chosen", np.array([np.nan]), np.ones(1)))


def test_samples_of_steps_that_are_taken_again_stand_once(tmp_path):
    samples = (["p"], lambda params: [f"c{params}"])
    down = make_course(lambda w, step: w - 1.0)._replace(samples=samples, measure=None)
    watch = course.Watch(down, open_folder(tmp_path), OPTIONS, 9, 0)
    for step in (0, 3, 6, 3):
        watch.look(step, step)
    assert [(row["step"], row["completion"]) for row in watch.rows] == [(0, "c0"), (3, "c3")]


def test_a_best_that_is_damaged_is_not_replaced_by_another(tmp_path):
    folder, down = open_folder(tmp_path), make_course(lambda w, step: jnp.where(step < 2, w - 1.0, 9.0))
    assert course.follow(down, folder, OPTIONS, 3).step == 2
    path = folder.path / "best" / "checkpoint_000000002.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match="no other is whole"):
        course.follow(down, open_folder(tmp_path, resume=True), OPTIONS, 3)


@pytest.mark.parametrize(
    "content", [None, b"{torn", b'{"1": {}}', b'{"1": {"accuracy": 1}}', b'{"1": {"loss": "low"}}', b"\xff"]
)
def test_held_out_metrics_that_are_lost_are_told_and_no_hindrance(tmp_path, content):
    folder, down = open_folder(tmp_path), make_course(lambda w, step: w - 1.0)
    course.follow(down, folder, OPTIONS, 2)
    path = folder.path / "held_out.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match="held_out.json cannot be read, and is lost up to step 2"):
        outcome = course.follow(down, open_folder(tmp_path, resume=True), OPTIONS, 3)
    assert outcome.step == 3 and outcome.held_out.keys() == {3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        course.follow(down, open_folder(tmp_path, resume=True), OPTIONS, 3)
    assert jax.tree.leaves(outcome.params)[0].shape == (1,)
