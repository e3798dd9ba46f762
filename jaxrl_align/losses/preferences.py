"""Learning from preferences: reward models."""

import chex
import jax

from jaxrl_align.losses._arrays import as_floats, same_shape


def bradley_terry(
    score_chosen: chex.Array,
    score_rejected: chex.Array,
    *,
    margin: chex.Numeric = 0.0,
    label_smoothing: chex.Numeric = 0.0,
) -> chex.Array:
    """Compute the negative log-likelihood that the chosen answer beats the rejected one.

        -(1 - eps) log sigma(d) - eps log sigma(-d),   d = r_chosen - r_rejected - margin

    Args:
      score_chosen: [...] reward of the preferred answer.
      score_rejected: [...] reward of the other.
      margin: [] or [...] by how much the chosen should win, >= 0.
      label_smoothing: [] eps in [0, 0.5), the chance that the label is flipped.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: Bradley & Terry 1952; margin: Touvron et al. 2023; lecture 003 (F5).
    """
    score_chosen, score_rejected = same_shape(score_chosen, score_rejected)
    d = score_chosen - score_rejected - as_floats(margin)[0]
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(d) - label_smoothing * jax.nn.log_sigmoid(-d)


def dpo(
    policy_chosen_logp: chex.Array,
    policy_rejected_logp: chex.Array,
    ref_chosen_logp: chex.Array,
    ref_rejected_logp: chex.Array,
    *,
    beta: chex.Numeric,
    label_smoothing: chex.Numeric = 0.0,
) -> chex.Array:
    """Compute direct preference optimisation's loss; `label_smoothing` > 0 is conservative DPO (cDPO).

        bradley_terry(h_w, h_l),   h = beta log(pi(y|x) / pi_ref(y|x))

    Args:
      policy_chosen_logp: [...] nats, whole answer (the sum over its tokens) under the policy.
      policy_rejected_logp: [...] the same of the other answer.
      ref_chosen_logp: [...] nats under the reference; gradient stopped.
      ref_rejected_logp: [...] the same of the other answer.
      beta: [] weight of the implicit KL penalty, > 0.
      label_smoothing: [] in [0, 0.5), the chance that the label is flipped.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: Rafailov et al. 2023, eq. 7; cDPO: Mitchell 2023.
    """
    logps = same_shape(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp)
    chosen, rejected, ref_chosen, ref_rejected = logps
    ref_chosen, ref_rejected = jax.lax.stop_gradient((ref_chosen, ref_rejected))
    return bradley_terry(
        beta * (chosen - ref_chosen), beta * (rejected - ref_rejected), label_smoothing=label_smoothing
    )
