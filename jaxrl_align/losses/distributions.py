"""Distributions over actions as pytrees: `vmap`, `jit` and `tree.map` go through them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses._arrays import as_floats, pick, same_shape
from jaxrl_align.losses.divergences import categorical_kl, entropy, gaussian_entropy, gaussian_kl
from jaxrl_align.types import Array

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / np.sqrt(2.0 * np.pi)


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
    """The hyperbolic tangent of a diagonal Gaussian: actions in (-1, 1).

        log p(a) = log N(atanh(a)) - sum_d log(1 - a_d^2)

    `mean` and `log_std` are [..., D] and belong to the Gaussian before the tanh.

    Source: Haarnoja et al. 2018, appendix C.
    """

    mean: jax.Array
    log_std: jax.Array

    def log_prob(self, action: Array) -> jax.Array:
        """Return the log-density [...] in nats of actions [..., D]; those at -1 or 1 count as just inside."""
        (action,) = as_floats(action)
        bound = 1.0 - jnp.finfo(action.dtype).eps
        return self.log_prob_before_tanh(jnp.arctanh(jnp.clip(action, -bound, bound)))

    def log_prob_before_tanh(self, x: Array) -> jax.Array:
        """Return the log-density [...] of tanh(x), x [..., D]: exact where tanh(x) rounds to 1."""
        gaussian = DiagonalGaussian(self.mean, self.log_std)
        return gaussian.log_prob(x) - jnp.sum(_log_slope(*as_floats(x)), axis=-1)

    def entropy(self) -> jax.Array:
        """Return the entropy [...] in nats, by Gauss-Hermite quadrature with 64 nodes per coordinate."""
        mean, log_std = same_shape(self.mean, self.log_std)
        nodes, weights = jnp.asarray(_NODES, mean.dtype), jnp.asarray(_WEIGHTS, mean.dtype)
        slope = _log_slope(
            mean[..., None] + jnp.exp(log_std)[..., None] * jnp.expand_dims(nodes, range(mean.ndim))
        )
        return gaussian_entropy(log_std) + jnp.sum(slope @ weights, axis=-1)

    def kl(self, other: "TanhGaussian") -> jax.Array:
        """Return KL(self || other), [...] in nats: the Gaussians', since both pass through the same map."""
        return gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw actions [..., D]; the gradient flows to `mean` and `log_std`."""
        return jnp.tanh(DiagonalGaussian(self.mean, self.log_std).sample(key))

    def mode(self) -> jax.Array:
        """Return tanh(mean) [..., D], the median; with a large std the density peaks nearer the bounds."""
        return jnp.tanh(*as_floats(self.mean))


def _log_slope(x: jax.Array) -> jax.Array:
    """Return log(1 - tanh(x)^2) without the cancellation at large |x|."""
    return 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
