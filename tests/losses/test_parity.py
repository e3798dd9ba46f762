"""Equality with rlax, optax, scipy and trl, whose answers are stored in fixtures/parity.json."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

FIXTURES = Path(__file__).with_name("fixtures")
FIXTURE = json.loads((FIXTURES / "parity.json").read_text())
X = {name: np.asarray(value) for name, value in FIXTURE["inputs"].items()}

V_TM1, V_T = X["value"][:-1], X["value"][1:]
STREAM = X["reward"], X["discount"], X["lambda"]
P, Q, ACTION, TIME = X["logits_p"], X["logits_q"], X["action"], len(X["reward"])
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = LOGPS = X["logp"]
GROUPS = X["score"][0][:8].reshape(2, 4)
ANSWER = CHOSEN, REF_CHOSEN, 0.8, X["mask"]
CLIPS = {"clip": 0.2, "clip_high": 0.3}


def log_p() -> jax.Array:
    return L.token_log_prob(P, ACTION)


def ppo(log_ratio: jax.Array) -> jax.Array:
    return jnp.mean(L.clipped_surrogate(log_ratio, jnp.zeros(TIME), X["advantage"], clip=0.2))


def vtrace() -> L.VTrace:
    return L.vtrace(*STREAM, V_TM1, V_T, X["ratio"], clip_rho=1.1, clip_pg_rho=1.3)


def over_time(f, *args):
    return jax.vmap(f)(*map(jnp.asarray, args))


OURS = {
    "gae": lambda: L.gae(*STREAM, V_TM1, V_T),
    "lambda_returns": lambda: L.lambda_returns(*STREAM, V_T),
    "n_step_returns": lambda: L.n_step_returns(*STREAM[:2], np.ones(TIME), V_T, n=3),
    "discounted_returns": lambda: L.discounted_returns(*STREAM[:2], V_T[-1]),
    "vtrace_error": lambda: vtrace().target - V_TM1,
    "vtrace_advantage": lambda: vtrace().advantage,
    "q_learning_error": lambda: over_time(L.q_learning_error, X["q"][0], ACTION, *STREAM[:2], X["q"][1]),
    "double_q_error": lambda: over_time(L.double_q_error, X["q"][0], ACTION, *STREAM[:2], *X["q"][1:]),
    "sarsa_error": lambda: over_time(
        L.sarsa_error, X["q"][0], ACTION, *STREAM[:2], X["q"][1], np.roll(ACTION, 1)
    ),
    "expected_sarsa_error": lambda: over_time(
        L.expected_sarsa_error, X["q"][0], ACTION, *STREAM[:2], X["q"][1], jax.nn.softmax(P)
    ),
    "td_error": lambda: over_time(L.td_error, V_TM1, *STREAM[:2], V_T),
    "lambda_error": lambda: L.lambda_error(*STREAM, V_TM1, V_T),
    "categorical_projection": lambda: L.categorical_projection(X["atoms"], X["atom_probs"], X["support"]),
    "categorical_q_loss": lambda: L.categorical_q_loss(
        X["atom_logits"][0], 2, 0.3, 0.9, X["atom_logits"][1], X["support"]
    ),
    "quantile_regression_loss": lambda: L.quantile_regression_loss(
        X["quantiles"][0], X["tau"], X["quantiles"][1], delta=0.5
    ),
    "clipped_surrogate": lambda: ppo(jnp.log(X["ratio"])),
    "clipped_surrogate_gradient": lambda: jax.grad(ppo)(jnp.log(X["ratio"])),
    "entropy": lambda: -jnp.mean(L.entropy(P)),
    "reinforce_loss": lambda: jnp.mean(L.reinforce_loss(log_p(), X["advantage"])),
    "categorical_kl": lambda: L.categorical_kl(P, Q),
    "huber": lambda: L.huber(X["reward"], delta=0.7),
    "tanh_gaussian_log_prob": lambda: L.TanhGaussian(X["mean"][0], X["log_std"][0]).log_prob(X["point"]),
    "next_token_loss": lambda: L.next_token_loss(P, ACTION),
    "next_token_loss_smoothed": lambda: L.next_token_loss(P, ACTION, label_smoothing=0.1),
    "huber_optax": lambda: L.huber(X["reward"], delta=0.7),
    "squared": lambda: L.squared(X["reward"]),
    "binary_label": lambda: L.binary_label(X["score"][0], X["label"]),
    "bernoulli_reconstruction": lambda: L.reconstruction_error(X["label"], X["score"][0], kind="bernoulli"),
    "categorical_entropy": lambda: L.Categorical(P).entropy(),
    "categorical_kl_scipy": lambda: L.Categorical(P).kl(L.Categorical(Q)),
    "gaussian_log_prob": lambda: L.DiagonalGaussian(X["mean"][0], X["log_std"][0]).log_prob(X["point"]),
    "gaussian_entropy": lambda: L.gaussian_entropy(X["log_std"][0]),
    "gaussian_kl": lambda: L.gaussian_kl(X["mean"][0], X["log_std"][0], X["mean"][1], X["log_std"][1]),
    "tanh_gaussian_entropy": lambda: L.TanhGaussian(X["mean"][0], X["log_std"][0]).entropy(),
    "token_log_prob": log_p,
    "bradley_terry": lambda: L.bradley_terry(*X["score"]),
    "bradley_terry_margin": lambda: L.bradley_terry(*X["score"], margin=0.5),
    "reward_centring": lambda: L.reward_centring(*X["score"]),
    "dpo": lambda: L.dpo(*LOGPS, beta=0.3),
    "cdpo": lambda: L.dpo(CHOSEN, REJECTED, np.zeros(TIME), np.zeros(TIME), beta=0.3, label_smoothing=0.1),
    "ipo": lambda: L.ipo(*LOGPS, beta=0.3),
    "kto": lambda: L.kto(
        CHOSEN,
        REF_CHOSEN,
        X["label"],
        np.full(TIME, 0.25),
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.7,
    ),
    "orpo": lambda: L.orpo(CHOSEN, REJECTED, beta=0.3),
    "simpo": lambda: L.simpo(CHOSEN, REJECTED, beta=0.3, margin=0.5),
    "slic": lambda: L.slic(CHOSEN, REJECTED, np.zeros(TIME), delta=1.0, target_weight=0.0),
    "group_advantages": lambda: over_time(L.group_advantages, GROUPS),
    "leave_one_out_advantages": lambda: over_time(L.leave_one_out_advantages, GROUPS),
    "grpo": lambda: L.grpo(*ANSWER, **CLIPS),
    "dr_grpo": lambda: L.dr_grpo(*ANSWER, **CLIPS),
    "gspo": lambda: L.gspo(*ANSWER, **CLIPS),
    "kl_k3": lambda: L.kl_estimate(CHOSEN, REF_CHOSEN, kind="k3"),
}


def test_every_stored_case_is_compared():
    assert set(OURS) == set(FIXTURE["cases"])


@pytest.mark.parametrize("name", sorted(OURS))
def test_equals_outside_reference(name):
    expected = FIXTURE["cases"][name]["expected"]
    np.testing.assert_allclose(OURS[name](), expected, rtol=2e-5, atol=2e-6)


def test_script_explains_itself_without_the_libraries(tmp_path):
    """Hidden behind empty modules that refuse to import, the script must leave the fixture alone."""
    for module in ("rlax", "distrax"):
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module}')")
    before = (FIXTURES / "parity.json").read_bytes()
    run = subprocess.run(
        [sys.executable, str(FIXTURES / "make_parity.py")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing remade" in run.stdout
    assert (FIXTURES / "parity.json").read_bytes() == before
