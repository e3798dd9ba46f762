"""Learning from preferences without a reward model: DPO and its kin, element by element.

A log-probability is that of a whole answer, the sum over its tokens, except where it is said to be averaged.
"""

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import same_shape
from jaxrl_align.losses.preferences import bradley_terry
from jaxrl_align.types import Array, Numeric


def dpo(
    policy_chosen_logp: Array,
    policy_rejected_logp: Array,
    ref_chosen_logp: Array,
    ref_rejected_logp: Array,
    *,
    beta: Numeric,
    label_smoothing: Numeric = 0.0,
) -> jax.Array:
    """Compute direct preference optimisation's loss; `label_smoothing` > 0 is conservative DPO (cDPO).

        bradley_terry(h_w, h_l),   h = beta log(pi(y|x) / pi_ref(y|x))

    Args:
      policy_chosen_logp: [...] nats, whole answer (the sum over its tokens) under the policy.
      policy_rejected_logp: [...] the same of the other answer.
      ref_chosen_logp: [...] nats under the reference; gradient stopped.
      ref_rejected_logp: [...] the same of the other answer.
      beta: [] weight of the implicit KL penalty, > 0.
      label_smoothing: [] or [...] in [0, 0.5), the chance that the label is flipped.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: Rafailov et al. 2023, eq. 7; cDPO: Mitchell 2023.
    """
    logps = same_shape(
        policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta=beta
    )
    chosen, rejected, ref_chosen, ref_rejected = logps
    ref_chosen, ref_rejected = jax.lax.stop_gradient((ref_chosen, ref_rejected))
    return bradley_terry(
        beta * (chosen - ref_chosen), beta * (rejected - ref_rejected), label_smoothing=label_smoothing
    )


def ipo(
    policy_chosen_logp: Array,
    policy_rejected_logp: Array,
    ref_chosen_logp: Array,
    ref_rejected_logp: Array,
    *,
    beta: Numeric,
) -> jax.Array:
    """Compute identity preference optimisation's loss, which does not push a certain preference to infinity.

        (h - 1 / (2 beta))^2,   h = log(pi_w / ref_w) - log(pi_l / ref_l)

    Args:
      policy_chosen_logp: [...] nats under the policy; averaged over tokens so that length does not matter.
      policy_rejected_logp: [...] the same of the other answer.
      ref_chosen_logp: [...] nats under the reference; gradient stopped.
      ref_rejected_logp: [...] the same of the other answer.
      beta: [] weight of the KL penalty (the paper's tau), > 0.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Azar et al. 2024, eq. 17.
    """
    logps = same_shape(
        policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta=beta
    )
    chosen, rejected, ref_chosen, ref_rejected = logps
    return jnp.square(chosen - rejected - jax.lax.stop_gradient(ref_chosen - ref_rejected) - 0.5 / beta)


def kto(
    policy_logp: Array,
    ref_logp: Array,
    desirable: Array,
    kl: Array,
    *,
    beta: Numeric,
    desirable_weight: Numeric = 1.0,
    undesirable_weight: Numeric = 1.0,
) -> jax.Array:
    """Compute Kahneman-Tversky optimisation's loss, from single answers judged good or bad.

        w_d (1 - sigma(beta (h - z)))  if good,   w_u (1 - sigma(beta (z - h)))  if bad,   h = log(pi / ref)

    Args:
      policy_logp: [...] nats under the policy.
      ref_logp: [...] nats under the reference; gradient stopped.
      desirable: [...] 1 or True for a good answer, 0 for a bad one.
      kl: [...] z, the estimated KL(pi || ref) of the batch, held at 0 from below; gradient stopped.
      beta: [] sharpness, > 0.
      desirable_weight: [] or [...] w_d.
      undesirable_weight: [] or [...] w_u.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Ethayarajh et al. 2024, eq. 8.
    """
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    policy_logp, ref_logp, desirable, kl = same_shape(
        policy_logp, ref_logp, desirable, kl, beta=beta, **weights
    )
    h = policy_logp - jax.lax.stop_gradient(ref_logp)
    gain = beta * (h - jax.lax.stop_gradient(jnp.maximum(kl, 0.0)))
    good = desirable > 0
    return jnp.where(good, desirable_weight, undesirable_weight) * jax.nn.sigmoid(
        jnp.where(good, -gain, gain)
    )


def orpo(chosen_logp: Array, rejected_logp: Array, *, beta: Numeric) -> jax.Array:
    """Compute odds-ratio preference optimisation's loss: imitation and preference without a reference.

        -log p_w - beta log sigma(log odds_w - log odds_l),   odds = p / (1 - p)

    Args:
      chosen_logp: [...] nats, averaged over the tokens of the preferred answer, <= 0.
      rejected_logp: [...] the same of the other answer.
      beta: [] weight of the odds ratio (the paper's lambda), >= 0.

    Returns:
      [...] nats. Probabilities above 1 - 1e-6 count as that in the odds, so that they stay finite.

    Raises:
      AssertionError: if the shapes differ.

    Source: Hong et al. 2024, eq. 6.
    """
    chosen_logp, rejected_logp = same_shape(chosen_logp, rejected_logp, beta=beta)
    return -chosen_logp - beta * jax.nn.log_sigmoid(log_odds_ratio(chosen_logp, rejected_logp))


def log_odds_ratio(chosen_logp: Array, rejected_logp: Array) -> jax.Array:
    """Compute how much likelier the preferred answer is, as ORPO measures it.

        log odds_w - log odds_l,   odds = p / (1 - p)

    Args:
      chosen_logp: [...] nats, averaged over the tokens of the preferred answer, <= 0.
      rejected_logp: [...] the same of the other answer.

    Returns:
      [...] nats. Probabilities above 1 - 1e-6 count as that, so that the odds stay finite.

    Raises:
      AssertionError: if the shapes differ.

    Source: Hong et al. 2024, eq. 4.
    """
    chosen_logp, rejected_logp = same_shape(chosen_logp, rejected_logp)
    return _log_odds(chosen_logp) - _log_odds(rejected_logp)


def _log_odds(log_p: jax.Array) -> jax.Array:
    log_p = jnp.minimum(log_p, -1e-6)
    return log_p - jnp.log(-jnp.expm1(log_p))


def simpo(chosen_logp: Array, rejected_logp: Array, *, beta: Numeric, margin: Numeric) -> jax.Array:
    """Compute simple preference optimisation's loss, whose reward is the mean log-probability.

        -log sigma(beta l_w - beta l_l - margin)

    Args:
      chosen_logp: [...] l_w, nats averaged over the tokens of the preferred answer.
      rejected_logp: [...] l_l, the same of the other answer.
      beta: [] scale of the reward, > 0.
      margin: [] the paper's gamma, >= 0.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: Meng et al. 2024, eq. 6.
    """
    chosen_logp, rejected_logp = same_shape(chosen_logp, rejected_logp, beta=beta, margin=margin)
    return bradley_terry(beta * chosen_logp, beta * rejected_logp, margin=margin)


def slic(
    chosen_logp: Array,
    rejected_logp: Array,
    target_logp: Array,
    *,
    delta: Numeric,
    target_weight: Numeric,
) -> jax.Array:
    """Compute sequence-likelihood calibration's loss: a margin between answers, and imitation of a target.

        max(0, delta - log pi_w + log pi_l) - lambda log pi(target)

    Args:
      chosen_logp: [...] nats of the preferred answer.
      rejected_logp: [...] nats of the other.
      target_logp: [...] nats of the answer that regularises, usually from supervised fine-tuning.
      delta: [] margin, > 0.
      target_weight: [] lambda >= 0.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Zhao et al. 2023 (SLiC-HF), eq. 1.
    """
    chosen_logp, rejected_logp, target_logp = same_shape(
        chosen_logp, rejected_logp, target_logp, delta=delta, target_weight=target_weight
    )
    return jnp.maximum(0.0, delta - chosen_logp + rejected_logp) - target_weight * target_logp
