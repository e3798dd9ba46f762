"""Our losses against rlax's, in turn in one process, at [B=256, T=128]; and GAE by two kinds of scan.

Claim: no recursion (GAE, lambda returns, V-trace) and no loss with its gradient is slower than rlax's.

Measured (rlax 0.1.9, jax 0.10.2, two shared CPU cores; two runs; ours / rlax in calls a second, the median of
200 rounds in alternating order, each after a check that both give the same numbers). Ahead: GAE 1.04-1.07,
n-step returns 1.25-1.48, V-trace 1.18-1.23, TD(lambda) with gradient 1.41, clipped surrogate 1.05-1.07,
REINFORCE 1.9, entropy 1.6, categorical KL 1.7, Huber 1.15. Level to within 3%: lambda returns 0.99-1.00,
discounted returns 0.99-1.00, Q-learning 1.00-1.02, double Q 1.01-1.03, expected SARSA 1.00-1.03. There both
compile to the same loop or gather; neither unrolling the loop nor selecting by a mask made ours faster.

The associative scan does not win on these two cores: for one stream or 16 of T = 64 to 65,536 it ran at
0.10-0.57 of the loop's speed, and at 0.74 for 16 streams of 16,384. XLA's compiled loop needs about 4 ns a
step, and log2(T) passes cross the memory more often than two cores can share out. A crossing point can only
be found on hardware with many more lanes, where the second table looks for it.

    pip install --no-deps rlax distrax tfp-nightly dm-env     # beside this package, in a scratch environment
    python experiments/benchmarks/losses.py
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import losses as L
from jaxrl_align.runtime import cli


@dataclass(frozen=True)
class Config:
    """How often, and on what shapes."""

    batch: int = 256
    time: int = 128
    actions: int = 6
    rounds: int = 200
    """Ours and theirs are called in turn this many times; the row gives the median of the rounds' ratios."""
    seconds: float = 0.004
    """Roughly how long one of a round's measurements lasts."""
    longest: int = 65_536
    """Longest stream of the comparison of scans; 0 leaves it out."""


Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[jax.Array, ...]]


def calls_a_second(f: Callable[..., Any], arguments: tuple[jax.Array, ...], num: int) -> float:
    """Time `num` calls that wait for their results."""
    start = time.perf_counter()
    for _ in range(num):
        jax.block_until_ready(f(*arguments))
    return num / (time.perf_counter() - start)


def compare(pair: Pair, config: Config) -> tuple[float, float, np.ndarray]:
    """Return the medians of our and their calls a second, and the quartiles of the rounds' ratio."""
    ours, theirs, arguments = pair
    ours, theirs = jax.jit(ours), jax.jit(theirs)
    for got, want in zip(*(jax.tree.leaves(f(*arguments)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    num = max(1, int(config.seconds * calls_a_second(theirs, arguments, 5)))
    rates = np.empty((config.rounds, 2))
    for i in range(config.rounds):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        for j in order:
            rates[i, j] = calls_a_second((ours, theirs)[j], arguments, num)
    quartiles = np.quantile(rates[:, 0] / rates[:, 1], [0.25, 0.5, 0.75])
    return *np.median(rates, axis=0), quartiles


def make_inputs(config: Config) -> dict[str, jax.Array]:
    """Draw a batch of streams with a termination every 50 steps or so."""
    rng = np.random.default_rng(0)
    shape = config.batch, config.time
    alive = rng.random(shape) > 0.02
    arrays = {
        "r": rng.normal(size=shape),
        "discount": 0.99 * alive,
        "lambda": np.full(shape, 0.95),
        "v": rng.normal(size=(config.batch, config.time + 1)),
        "log_ratio": 0.2 * rng.normal(size=shape),
        "logits": rng.normal(size=(2, *shape, config.actions)),
        "advantage": rng.normal(size=shape),
    }
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    return arrays | {"action": jnp.asarray(rng.integers(config.actions, size=shape), jnp.int32)}


def recursions(x: dict[str, jax.Array], rlax: Any) -> dict[str, Pair]:
    """Pair our recursions with rlax's, over the batch."""
    v_t = x["v"][:, 1:]
    stream = x["r"], x["discount"], x["lambda"]
    over = lambda f: jax.vmap(f)

    def vtrace(
        r: jax.Array, discount: jax.Array, lambda_: jax.Array, v: jax.Array, log_ratio: jax.Array
    ) -> Any:
        out = L.vtrace(r, discount, lambda_, v[:-1], v[1:], jnp.exp(log_ratio))
        return out.target - v[:-1], out.advantage

    def their_vtrace(
        r: jax.Array, discount: jax.Array, lambda_: jax.Array, v: jax.Array, log_ratio: jax.Array
    ) -> Any:
        out = rlax.vtrace_td_error_and_advantage(v[:-1], v[1:], r, discount, jnp.exp(log_ratio), lambda_)
        return out.errors, out.pg_advantage

    return {
        "gae": (
            over(lambda r, d, lam, v: L.gae(r, d, lam, v[:-1], v[1:])),
            over(rlax.truncated_generalized_advantage_estimation),
            (*stream, x["v"]),
        ),
        "lambda returns": (
            over(L.lambda_returns),
            over(lambda r, d, lam, v: rlax.lambda_returns(r, d, v, lam)),
            (*stream, v_t),
        ),
        "n-step returns, n=5": (
            over(lambda r, d, lam, v: L.n_step_returns(r, d, lam, v, n=5)),
            over(lambda r, d, lam, v: rlax.n_step_bootstrapped_returns(r, d, v, 5, lam)),
            (*stream, v_t),
        ),
        "discounted returns": (
            over(L.discounted_returns),
            over(lambda r, d: rlax.discounted_returns(r, d, jnp.zeros(()))),
            stream[:2],
        ),
        "v-trace": (over(vtrace), over(their_vtrace), (*stream, x["v"], x["log_ratio"])),
    } | {
        "td(lambda), gradient": with_gradient(
            over(lambda v, r, d, lam: L.lambda_error(r, d, lam, v[:-1], v[1:])),
            over(lambda v, r, d, lam: rlax.td_lambda(v[:-1], r, d, v[1:], lam)),
            (x["v"], *stream),
        )
    }


def one_step(x: dict[str, jax.Array], rlax: Any) -> dict[str, Pair]:
    """Pair our losses of single steps, with their gradients, with rlax's."""
    q_tm1, q_t = x["logits"]
    step = q_tm1, x["action"], x["r"], x["discount"], q_t
    each, over = jax.vmap, lambda f: jax.vmap(jax.vmap(f))
    log_ratio, advantage, action = x["log_ratio"], x["advantage"], x["action"]
    ones = jnp.ones(advantage.shape)
    return {
        "q-learning": with_gradient(over(L.q_learning_error), over(rlax.q_learning), step),
        "double q": with_gradient(
            over(L.double_q_error), over(rlax.double_q_learning), (*step, q_t[..., ::-1])
        ),
        "expected sarsa": with_gradient(
            over(L.expected_sarsa_error), over(rlax.expected_sarsa), (*step, jax.nn.softmax(q_t))
        ),
        "clipped surrogate": with_gradient(
            lambda lr, old, adv: L.clipped_surrogate(lr, old, adv, clip=0.2),
            lambda lr, old, adv: each(lambda r, a: rlax.clipped_surrogate_pg_loss(r, a, 0.2))(
                jnp.exp(lr - old), adv
            ),
            (log_ratio, jnp.zeros_like(log_ratio), advantage),
        ),
        "reinforce": with_gradient(
            lambda logits, a, adv, _: L.reinforce_loss(each(L.token_log_prob)(logits, a), adv),
            each(rlax.policy_gradient_loss),
            (q_tm1, action, advantage, ones),
        ),
        "entropy": with_gradient(
            lambda logits, _: -L.entropy(logits), each(rlax.entropy_loss), (q_tm1, ones)
        ),
        "categorical kl": with_gradient(L.categorical_kl, over(rlax.categorical_kl_divergence), (q_tm1, q_t)),
        "huber": with_gradient(L.huber, rlax.huber_loss, (3.0 * x["r"],)),
    }


def with_gradient(ours: Callable[..., Any], theirs: Callable[..., Any], arguments: tuple[Any, ...]) -> Pair:
    """Return the pair as value and gradient in the first argument of the mean."""
    value_and_grad = lambda f: jax.value_and_grad(lambda *args: jnp.mean(f(*args)))
    return value_and_grad(ours), value_and_grad(theirs), arguments


def compare_scans(config: Config) -> None:
    """Print `gae_associative` over `gae` for one stream and for a batch of 16, over lengths that double."""
    for batch in (1, 16):
        length = 64
        while length <= config.longest:
            shape = batch, length
            stream = [jnp.full(shape, x, jnp.float32) for x in (1.0, 0.99, 0.95, 0.5, 0.5)]
            ours, theirs, (_, ratio, _) = compare(
                (jax.vmap(L.gae_associative), jax.vmap(L.gae), tuple(stream)), config
            )
            print(f"{f'[{batch}, {length}]':14s} | {ours:9.0f} | {theirs:9.0f} | {ratio:.2f}", flush=True)
            length *= 4


def main(config: Config) -> None:
    """Print one row for each function: calls a second, and the ratio's quartiles."""
    x = make_inputs(config)
    try:
        import rlax
    except ImportError as error:
        print(
            f"rlax is absent ({error}): no comparison with it. "
            "pip install --no-deps rlax distrax tfp-nightly dm-env"
        )
    else:
        print(f"[B={config.batch}, T={config.time}] | ours /s | rlax /s | ratio, median [quartiles]")
        for name, pair in (recursions(x, rlax) | one_step(x, rlax)).items():
            ours, theirs, (low, middle, high) = compare(pair, config)
            row = f"{ours:8.0f} | {theirs:8.0f} | {middle:.2f} [{low:.2f}, {high:.2f}]"
            print(f"{name:20s} | {row}", flush=True)
    if config.longest:
        print("[streams, T]   | associative /s | loop /s | ratio")
        compare_scans(config)


if __name__ == "__main__":
    cli.main(Config, main)
