"""Distributions over actions as pytrees: `vmap`, `jit` and `tree.map` go through them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses._arrays import as_floats, pick, same_shape
from jaxrl_align.losses.divergences import categorical_kl, entropy, gaussian_entropy, gaussian_kl
from jaxrl_align.types import Array

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


class Categorical(NamedTuple):
    """One of A actions with probability softmax(logits).

        log p(a) = logits_a - logsumexp(logits)

    `logits` is [..., A]; -inf forbids an action.

    Source: docs/lectures.md (B1).
    """

    logits: jax.Array

    def log_prob(self, action: Array) -> jax.Array:
        """Return the log-probability [...] in nats of integer actions [...]."""
        (logits,) = as_floats(self.logits)
        return pick(logits, action) - jax.nn.logsumexp(logits, axis=-1)

    def entropy(self) -> jax.Array:
        """Return the entropy [...] in nats."""
        return entropy(self.logits)

    def kl(self, other: "Categorical") -> jax.Array:
        """Return KL(self || other), [...] in nats."""
        return categorical_kl(self.logits, other.logits)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw actions [...]."""
        return jax.random.categorical(key, *as_floats(self.logits))

    def mode(self) -> jax.Array:
        """Return the likeliest actions [...]."""
        return jnp.argmax(self.logits, axis=-1)


class MultiCategorical(NamedTuple):
    """K independent choices at once, each among A actions: a product of categoricals.

        log p(a_1 ... a_K) = sum_k logits_{k, a_k} - logsumexp(logits_k)

    `logits` is [..., K, A]; -inf forbids an action, and fills the rows of choices with fewer than A.

    Source: the product rule; Tavakoli, Pardo & Kormushev 2018.
    """

    logits: jax.Array

    def log_prob(self, action: Array) -> jax.Array:
        """Return the log-probability [...] in nats of integer actions [..., K]."""
        return jnp.sum(Categorical(self.logits).log_prob(action), axis=-1)

    def entropy(self) -> jax.Array:
        """Return the entropy [...] in nats, the sum of the choices'."""
        return jnp.sum(entropy(self.logits), axis=-1)

    def kl(self, other: "MultiCategorical") -> jax.Array:
        """Return KL(self || other), [...] in nats, the sum of the choices'."""
        return jnp.sum(categorical_kl(self.logits, other.logits), axis=-1)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw actions [..., K]."""
        return Categorical(self.logits).sample(key)

    def mode(self) -> jax.Array:
        """Return the likeliest actions [..., K]."""
        return Categorical(self.logits).mode()


class DiagonalGaussian(NamedTuple):
    """Independent Gaussians, one for each of D coordinates.

        log p(x) = -sum_d (x_d - m_d)^2 / (2 s_d^2) + log s_d + 0.5 log(2 pi)

    `mean` and `log_std` are [..., D].

    Source: Schulman et al. 2015 (TRPO), appendix D.
    """

    mean: jax.Array
    log_std: jax.Array

    def log_prob(self, x: Array) -> jax.Array:
        """Return the log-density [...] in nats of points [..., D]."""
        mean, log_std, x = same_shape(self.mean, self.log_std, x)
        z = (x - mean) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)

    def entropy(self) -> jax.Array:
        """Return the differential entropy [...] in nats."""
        return gaussian_entropy(self.log_std)

    def kl(self, other: "DiagonalGaussian") -> jax.Array:
        """Return KL(self || other), [...] in nats."""
        return gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw points [..., D]; the gradient flows to `mean` and `log_std`."""
        mean, log_std = same_shape(self.mean, self.log_std)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)

    def mode(self) -> jax.Array:
        """Return the mean [..., D]."""
        return self.mean


class TanhGaussian(NamedTuple):
    """The hyperbolic tangent of a diagonal Gaussian: actions a = tanh(x) in (-1, 1), given by their x.

        log p(a) = log N(x) - sum_d log(1 - tanh(x_d)^2)

    `mean` and `log_std` are [..., D] and belong to the Gaussian. What is drawn, stored and judged is x: where
    tanh(x) rounds to 1 its density cannot be recovered, and the score would be biased towards the bound. The
    environment gets `tanh(x)`; of an action that comes from elsewhere pass `arctanh(a)`.

    Source: Haarnoja et al. 2018, appendix C.
    """

    mean: jax.Array
    log_std: jax.Array

    def log_prob(self, x: Array) -> jax.Array:
        """Return the log-density [...] in nats of the actions tanh(x), x [..., D]."""
        gaussian = DiagonalGaussian(self.mean, self.log_std)
        return gaussian.log_prob(x) - jnp.sum(_log_slope(*as_floats(x)), axis=-1)

    def entropy(self) -> jax.Array:
        """Return the entropy [...] of the actions in nats, by quadrature: six digits for any std."""
        mean, log_std = same_shape(self.mean, self.log_std)
        return gaussian_entropy(log_std) + jnp.sum(_mean_log_slope(mean, jnp.exp(log_std)), axis=-1)

    def kl(self, other: "TanhGaussian") -> jax.Array:
        """Return KL(self || other), [...] in nats: the Gaussians', since both pass through the same map."""
        return gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw x [..., D]; the gradient flows to `mean` and `log_std`."""
        return DiagonalGaussian(self.mean, self.log_std).sample(key)

    def mode(self) -> jax.Array:
        """Return the mean [..., D]; tanh(mean) is the median, and with a large std no peak."""
        return self.mean


def _log_slope(x: jax.Array) -> jax.Array:
    """Return log(1 - tanh(x)^2) without the cancellation at large |x|."""
    return 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def _mean_log_slope(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return E[log(1 - tanh(x)^2)], elementwise, x Gaussian.

    It is `2 log 2 - 2 E|x| - 2 E[log(1 + exp(-2 |x|))]`. E|x| is known; the rest lies where |x| < 12 and
    within 6 deviations, and is integrated by Gauss and Legendre on either side of the kink at x = 0.
    """
    normal = jax.scipy.stats.norm
    ends = [jnp.clip((x - mean) / std, -6.0, 6.0) for x in (-12.0, 0.0, 12.0)]
    weights = jnp.asarray(_WEIGHTS, mean.dtype)
    nodes = jnp.expand_dims(jnp.asarray(_NODES, mean.dtype), range(mean.ndim))
    rest = jnp.zeros_like(mean)
    for low, high in zip(ends, ends[1:], strict=False):
        half = 0.5 * (high - low)
        z = low[..., None] + half[..., None] * (1.0 + nodes)
        x = mean[..., None] + std[..., None] * z
        rest += half * ((jnp.log1p(jnp.exp(-2.0 * jnp.abs(x))) * normal.pdf(z)) @ weights)
    ratio = mean / std
    absolute = 2.0 * std * normal.pdf(ratio) + mean * (1.0 - 2.0 * normal.cdf(-ratio))
    return 2.0 * (jnp.log(2.0) - absolute - rest)
