"""Every setting of every experiment has a text, and every part says which experiment it is of."""

import ast
import dataclasses
import inspect
import textwrap

import pytest

from jaxrl_align import rl
from jaxrl_align.cli.experiments.catalogue import find_scripts, read_experiments
from tests.experiments.loading import EXPERIMENTS, load

FOUND = read_experiments(EXPERIMENTS)
PARTS = sorted({path.stem for path in EXPERIMENTS.glob("*.py")} - FOUND.keys())


def described(kind):
    """Return the fields of a dataclass that it, or one that it inherits from, has a text for."""
    texts = set()
    for base in filter(dataclasses.is_dataclass, kind.__mro__):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, after in zip(body, body[1:], strict=False):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            if isinstance(field, ast.AnnAssign) and isinstance(text, str) and len(text.strip()) > 5:
                texts.add(field.target.id)
    return texts


def undescribed(kind):
    fields = dataclasses.fields(kind)
    inner = [field.type for field in fields if dataclasses.is_dataclass(field.type)]
    lacking = {field.name for field in fields} - described(kind)
    return sorted(lacking) + [name for one in inner for name in undescribed(one)]


@pytest.mark.parametrize("name", FOUND)
def test_every_flag_has_a_text(name):
    module = load(name)
    assert undescribed(module.Config) == []
    assert module.Config.__doc__ and not module.Config.__doc__.startswith("Config(")


def test_a_flag_without_a_text_is_seen():
    @dataclasses.dataclass
    class Above:
        first: int = 0
        """A text."""
        second: int = 0

    @dataclasses.dataclass
    class Below(Above):
        first: int = 1
        third: int = 0
        """x"""

    assert undescribed(Below) == ["second", "third"]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_points_to_an_experiment(name):
    source = (EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8")
    last = ast.parse(source).body[-1]
    assert isinstance(last, ast.If), f"{name}.py ends without `cli.point_to`"
    calls = [node for node in ast.walk(last) if isinstance(node, ast.Call)]
    assert [call.func.attr for call in calls] == ["point_to"] and calls[0].args[0].value in FOUND


def test_ppo_exposes_all_of_its_hyperparameters_at_their_usual_values():
    config = load("ppo_cartpole").Config()
    for name, usual in rl.PPOHParams()._asdict().items():
        assert name == "learning_rate" or getattr(config, name) == usual


def test_the_checkout_is_where_experiments_are_looked_for():
    assert find_scripts() == EXPERIMENTS
