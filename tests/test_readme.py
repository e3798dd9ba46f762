"""The README's code runs as printed."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_shows_a_loss_and_a_vmap():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_block_runs(block, capsys):
    names = {}
    # Users run it without this suite's strictness.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed and "nan" not in printed
    for function in filter(inspect.isfunction, names.values()):
        if "next_value" in inspect.signature(function).parameters:
            check_critic(function)


def check_critic(loss):
    """A critic's loss moves the value towards its target, and never the bootstrap towards the value."""
    series = dict(reward=0.1, discount=0.99, lambda_=0.95, value=0.0, next_value=0.0, mask=1.0)
    series |= dict(log_prob=-0.7, old_log_prob=-0.7)
    arguments = [jnp.full(3, series[name]) for name in inspect.signature(loss).parameters]
    names = list(inspect.signature(loss).parameters)
    gradient = dict(zip(names, jax.grad(loss, tuple(range(len(names))))(*arguments), strict=True))
    np.testing.assert_array_equal(gradient["next_value"], 0.0)
    # Half the mean of advantages that are .1 (1 + c + c^2), .1 (1 + c) and .1 with c = .99 x .95.
    np.testing.assert_allclose(gradient["value"], [-0.28250 / 6, -0.19405 / 6, -0.1 / 6], rtol=1e-4)


def test_the_check_of_critics_finds_a_bootstrap_that_learns():
    from jaxrl_align import losses

    def wrong(log_prob, old_log_prob, reward, discount, lambda_, value, next_value, mask):
        advantage = losses.gae(reward, discount, lambda_, value, next_value)
        return losses.masked_mean(0.5 * losses.huber(advantage), mask)

    with pytest.raises(AssertionError):
        check_critic(wrong)
