"""PPO-ptx: RLHF that goes on pre-training, so that what rewards do not ask for is not forgotten.

Source: Ouyang et al. 2022 (arXiv:2203.02155), equation 2.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.checks import check_divides
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.placement import place_rows
from jaxrl_align.pretrain.lm import predict_row
from jaxrl_align.rl.actor_critic import Batch, Loss
from jaxrl_align.types import Actor, Evaluation, Metrics, Params, Sampler, TokenBatch, Trajectory


class MixedObservation(NamedTuple):
    """What an actor observes, and rows of text that the policy goes on learning to predict."""

    own: Any
    rows: TokenBatch
    """[R, L]."""


def with_pretraining(actor: Actor, lm: LanguageModel, sample: Sampler) -> Actor:
    """Return a text actor whose trajectories carry rows of the pre-training text, R for each response.

    They go where the trajectory goes, into its minibatch; `Evaluation.extra` [2] is the sum of their nats and
    how many tokens were predicted. `add_pretraining` makes a loss of them.

    Args:
      actor: of text, with parameters `{"lm": ..., ...}` and a `Frozen` tree.
      lm: its language model.
      sample: `key -> TokenBatch` [R B, L]; every one of the B responses of a rollout takes R rows.

    Raises:
      ValueError: at trace time, if the responses do not divide the rows.
    """

    def rollout(
        params: Params, frozen: Any, env_state: Any, key: chex.PRNGKey, hparams: Any, batch: Any
    ) -> tuple[Any, Trajectory, Metrics]:
        key, key_rows = jax.random.split(key)
        env_state, trajectory, metrics = actor.rollout(params, frozen, env_state, key, hparams, batch)
        rows, count = place_rows(sample(key_rows)), trajectory.mask.shape[0]
        check_divides(count, rows.tokens.shape[0], "responses of a rollout", "pre-training rows")
        rows = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        return env_state, trajectory._replace(obs=MixedObservation(trajectory.obs, rows)), metrics

    def evaluate(params: Params, frozen: Any, trajectory: Trajectory) -> Evaluation:
        own = trajectory._replace(obs=trajectory.obs.own)
        policy = overlay(frozen.reference, params["lm"])
        nats, _, counts = jax.vmap(lambda row: predict_row(lm, policy, row))(trajectory.obs.rows)
        extra = jnp.stack([jnp.sum(nats * counts), jnp.sum(counts)])
        return actor.evaluate(params, frozen, own)._replace(extra=extra)

    return actor._replace(rollout=rollout, evaluate=evaluate)


def add_pretraining(loss: Loss) -> Loss:
    """Return a loss with the pre-training loss of the minibatch's rows added, nats a token.

    L + hparams.pretraining_coef * nats / tokens
    """

    def mixed(evaluation: Evaluation, batch: Batch, hparams: Any) -> tuple[jax.Array, Metrics]:
        trajectory = batch.trajectory._replace(obs=batch.trajectory.obs.own)
        value, metrics = loss(evaluation, batch._replace(trajectory=trajectory), hparams)
        nats, count = jnp.sum(evaluation.extra, axis=0)
        predicted = nats / jnp.maximum(count, 1.0)
        return value + hparams.pretraining_coef * predicted, metrics | {"loss/pretraining_avg": predicted}

    return mixed
