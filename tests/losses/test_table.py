"""The page of all losses says what their docstrings say."""

import inspect
from pathlib import Path

import pytest

from jaxrl_align import losses
from jaxrl_align.losses.__main__ import describe, make_page

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
PROMISED = """
td_target q_learning_error double_q_error sarsa_error expected_sarsa_error huber clipped_value_loss
discounted_returns reward_to_go n_step_returns lambda_returns gae reinforce_loss
importance_ratio surrogate clipped_surrogate kl_penalty_surrogate categorical_kl kl_estimate entropy
bradley_terry plackett_luce dpo ipo kto orpo simpo group_advantages leave_one_out_advantages token_log_prob
next_token_loss reconstruction_error masked_mean whiten
"""
FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


def test_the_promised_names_are_public():
    assert set(PROMISED.split()) <= set(losses.__all__) <= set(vars(losses))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_and_result_is_documented(name):
    function = getattr(losses, name)
    blocks = dict(block.split(":\n", 1) for block in inspect.getdoc(function).split("\n\n") if ":\n" in block)
    documented = [line.split(":")[0].strip() for line in blocks["Args"].splitlines() if line[2] != " "]
    assert documented == list(inspect.signature(function).parameters)
    assert blocks["Returns"].strip()
    refusals = ("chex.assert_", "raise ValueError", "same_shape(", "series(", "pick(")
    if any(call in inspect.getsource(function) for call in refusals):
        assert blocks["Raises"].strip()


def test_the_page_is_what_the_docstrings_make():
    hint = "run: python -m jaxrl_align.losses > docs/losses.md"
    assert PAGE.read_text(encoding="utf-8") == make_page(), hint


def test_every_public_name_has_a_row_with_an_equation_and_a_source():
    page = PAGE.read_text(encoding="utf-8")
    for name in set(losses.__all__) - {"VTrace"}:
        summary, equation, source = describe(getattr(losses, name))
        assert f"| `{name}` | " in page
        assert summary.endswith((".", ":")) and equation.startswith("`") and source


def test_a_docstring_without_an_equation_is_refused():
    def loss(x):
        """Return x."""

    with pytest.raises(ValueError, match="the docstring of loss needs an indented equation and a Source"):
        describe(loss)
