"""How a response is judged: its log-probabilities and values in one full pass, and what its tokens earn."""

import jax
import jax.numpy as jnp

from jaxrl_align.actors.queries import join
from jaxrl_align.losses import Categorical, entropy, token_log_prob
from jaxrl_align.nets.transformer import LanguageModel, apply_scalar_head
from jaxrl_align.text.generation import KLPenalty, TextConfig, sampling_logits
from jaxrl_align.types import Evaluation, Numeric, PaddedTokens, Params


def judge(
    lm: LanguageModel,
    params: Params,
    prompt: PaddedTokens,
    response: jax.Array,
    mask: jax.Array,
    config: TextConfig,
    *,
    temperature: Numeric = 1.0,
    value_head: Params | None = None,
) -> Evaluation:
    """Judge ONE response in a single full pass: log-probabilities, entropies, values and distributions.

    The hidden state at position P - 1 + t predicts response token t, so values too are read one position
    before the token they judge.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
      config: lengths and special tokens.
      temperature: the sampling temperature.
      value_head: scalar head; None reads zeros.

    Returns:
      An `Evaluation` with leaves [T], the distribution's logits [T, V].
    """
    text = join(prompt, response, mask)
    hidden, _ = lm.encode(params, text.tokens, text.real)
    hidden = hidden[config.prompt_length - 1 : -1]
    logits = sampling_logits(lm.logits(params, hidden), temperature, config.barred_token)
    value = jnp.zeros_like(mask) if value_head is None else apply_scalar_head(value_head, hidden)
    return Evaluation(token_log_prob(logits, response), entropy(logits), value, Categorical(logits))


def prefix_values(
    lm: LanguageModel,
    critic: Params,
    prompt: PaddedTokens,
    response: jax.Array,
    mask: jax.Array,
    config: TextConfig,
) -> jax.Array:
    """Return the value of every prefix of ONE response, V(x, y_<t), in a single full pass of a critic.

    It never sees the token it judges: a baseline that reads the whole answer, as the lecture prints it,
    leaves no gradient (erratum H6).

    Args:
      lm: the critic's language model.
      critic: `{"lm": its parameters, "value": scalar head}`.
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
      config: lengths and special tokens.

    Returns:
      [T] the head at position P - 1 + t, one before response token t; arbitrary on padding.
    """
    text = join(prompt, response, mask)
    hidden, _ = lm.encode(critic["lm"], text.tokens, text.real)
    return apply_scalar_head(critic["value"], hidden[config.prompt_length - 1 : -1])


def last_real(mask: jax.Array) -> jax.Array:
    """Return [T] with 1 at the last real position of a right-padded mask [T], all 0 if nothing is real."""
    return mask * (1.0 - jnp.append(mask[1:], 0.0))


def token_rewards(
    score: jax.Array,
    log_prob: jax.Array,
    reference_log_prob: jax.Array,
    mask: jax.Array,
    kl_coef: Numeric,
    kl_penalty: KLPenalty = "token",
) -> jax.Array:
    """Return each token's reward: the score at the last real token, less what leaving the reference costs.

        "token"      -kl_coef (log pi - log pi_ref) at every token
        "sequence"   the sum of that over the response, at its last token
        "loss"       nothing; the loss has the penalty

    Args:
      score: [] any real type; the rewards are float.
      log_prob: [T] under the acting policy.
      reference_log_prob: [T] under the reference.
      mask: [T].
      kl_coef: beta, weight of the KL penalty (Ziegler et al. 2019, arXiv:1909.08593, equation 2).
      kl_penalty: where it is paid.

    Returns:
      [T] float32, 0 on padding.
    """
    penalty = -jnp.asarray(kl_coef) * (log_prob - reference_log_prob) * mask
    end = last_real(mask)
    if kl_penalty != "token":
        penalty = end * (jnp.sum(penalty) if kl_penalty == "sequence" else 0.0)
    return penalty + jnp.asarray(score, jnp.float32) * end
