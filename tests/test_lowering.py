"""Every learner's step is one program for a GPU and a TPU, and never asks the host.

Nothing is run or compiled: a step is traced on shapes alone and lowered for machines that are not here. What
is a Python function by its nature (`envs.HostEnvironment`, `align.host_reward`) is left out.
"""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align import actors, align, losses, nets, pretrain, rl
from jaxrl_align.actors.text import Frozen
from jaxrl_align.learner import make_optimizer, offload
from jaxrl_align.pretrain.text_classification import (
    LabelledText,
    TextClassifierHParams,
    make_text_classifier,
)
from jaxrl_align.text import TextConfig, generate
from jaxrl_align.types import Comparisons, PaddedTokens, Rankings, Ratings, TokenBatch
from tests.environments import Recall, Target
from tests.shapes import LLAMA
from tests.test_protocol import ENV, LEARNERS, MDP, POLICY, STATES

B, P, T = 4, 3, 4
VARIANTS = {"quantile dqn", "dora", "ia3", "houlsby", "prompt", "rankings", "ratings", "ipo", "slic", "simpo"}
VARIANTS |= {"dr-grpo", "gspo", "rloo", "rounds", "rlhf over packed weights", "rlhf with all its options"}
"""Near relations of what else is in the tables; they take half of the time."""
KEY = jax.eval_shape(lambda: jax.random.key(0))
ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
text = lambda *shape: PaddedTokens(ints(*shape), floats(*shape))


def mark_slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in names]


def check(f, *args, calls=frozenset()):
    """Lower a function of shapes for both platforms in one; of calls outside of XLA it makes these alone."""
    program = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert set(re.findall(r"custom_call @([\w$.]+)", program)) == calls


def check_step(learner, hparams, params=None, batch=None, frozen=None, calls=frozenset()):
    """Lower a learner's step; parameters, batch and frozen weights are shapes."""
    state = jax.eval_shape(lambda key, *given: learner.init(key, hparams, *given), KEY, params, frozen)
    check(learner.step, state, batch, frozen, calls=calls)


# Reinforcement learning

POLICY_GRADIENT = rl.PolicyGradientHParams()
SUPPORT = nets.support_between(-1.0, 1.0, 5)


def q_learner(net=(), **settings):
    phi = lambda state: jax.nn.one_hot(state, STATES)
    net = nets.make_q_net(2, (4,), **dict(net))
    actor = actors.make_value_actor(ENV, net, num_envs=4, num_steps=2, preprocess=phi)
    return rl.make_dqn(actor, capacity=80, batch_size=4, warmup_steps=8, **settings), rl.DQNHParams()


def policy(env, net, make=actors.make_actor, **settings):
    actor = make(env, net, num_envs=4, num_steps=4, **settings)
    return rl.make_actor_critic(actor, epochs=2, minibatches=2), rl.PPOHParams()


RL = {
    name: (lambda make=make, hparams=hparams: (make(), hparams)) for name, (make, hparams) in LEARNERS.items()
}
RL |= {
    "ppo of CartPole": lambda: policy("CartPole-v1", nets.make_actor_critic_net(2, hidden=(4,))),
    "continuous ppo": lambda: policy(
        (Target(), None),
        nets.make_gaussian_net((1,), hidden=(4,)),
        distribution=losses.TanhGaussian,
        normalise_obs=True,
        normalise_reward=True,
    ),
    "recurrent ppo": lambda: policy(
        (Recall(), None),
        nets.with_memory(nets.make_actor_critic_net(2, hidden=(4,)), width=4),
        actors.make_recurrent_actor,
    ),
    "a2c": lambda: (rl.make_a2c(POLICY), POLICY_GRADIENT),
    "reinforce": lambda: (rl.make_reinforce(POLICY), POLICY_GRADIENT),
    "ppo-kl": lambda: (rl.make_ppo_kl(POLICY), rl.PPOKLHParams()),
    "prioritised dqn": lambda: q_learner(prioritised=True, n_step=2, double=True),
    "rainbow": lambda: q_learner(
        {"duelling": True, "noisy": True, "support": SUPPORT}, prioritised=True, loss=rl.c51_loss(SUPPORT)
    ),
    "quantile dqn": lambda: q_learner({"quantiles": 4}, loss=rl.quantile_loss),
}


@pytest.mark.parametrize("name", mark_slow(RL))
def test_reinforcement_learners_lower(name):
    check_step(*RL[name]())


def test_members_of_a_learner_lower():
    learner, hparams = RL["ppo"]()
    state = jax.eval_shape(lambda keys: jax.vmap(lambda key: learner.init(key, hparams))(keys), stacked(KEY))
    check(jax.vmap(learner.step), state)


def stacked(tree, members=2):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), tree)


def test_dynamic_programming_lowers():
    check(rl.value_iteration, MDP)
    # The LU decompositions of both: policy evaluation solves a linear system.
    lu = {"cu_lu_pivots_to_permutation", "cusolver_getrf_ffi", "LuDecomposition"}
    check(rl.policy_iteration, MDP, calls=lu)


# Language models, in bfloat16

LM = nets.make_transformer(replace(LLAMA, dtype="bfloat16", remat=True))
PARAMS = jax.eval_shape(LM.init, KEY)
ROWS = TokenBatch(ints(B, 9), None, floats(B, 9))
LM_HPARAMS = pretrain.LMHParams()
LORA = lambda key, base: nets.init_lora(key, base, rank=2)


def fit_part(start, base=PARAMS):
    """Return the arguments of a step that trains a part over its frozen base."""
    part, constants = jax.eval_shape(start, KEY, base)
    return pretrain.make_lm_learner(LM), LM_HPARAMS, part, ROWS, nets.overlay(base, constants)


PACKED = jax.eval_shape(nets.quantise_params, PARAMS)
LANGUAGE = {
    "windows": lambda: (pretrain.make_lm_learner(LM), LM_HPARAMS, None, ROWS),
    "packed documents": lambda: (
        pretrain.make_lm_learner(LM, microbatches=2, total_steps=9),
        LM_HPARAMS,
        None,
        TokenBatch(ints(B, 9), floats(B, 9), floats(B, 9), ints(B, 9)),
    ),
    "lora": lambda: fit_part(LORA),
    "qlora": lambda: fit_part(LORA, PACKED),
    "dora": lambda: fit_part(lambda key, base: nets.init_lora(key, base, rank=2, dora=True)),
    "ia3": lambda: fit_part(lambda key, base: nets.init_ia3(base)),
    "houlsby": lambda: fit_part(lambda key, base: nets.init_houlsby(key, base, width=2)),
    "prompt": lambda: fit_part(lambda key, base: nets.init_prompt(key, base, length=2)),
    "prefix": lambda: fit_part(
        lambda key, base: nets.init_prefix(LM, base, nets.init_prompt(key, base, length=2).part)
    ),
    "classifier": lambda: (
        make_text_classifier(LM, 3),
        TextClassifierHParams(),
        None,
        LabelledText(ints(B, 9), floats(B, 9), ints(B)),
    ),
}
PAIRS = Comparisons(text(B, P), text(B, T), text(B, T))
RATED = Ratings(text(B, P), text(B, T), floats(B))
RANKED = Rankings(text(B, P), text(B, 3, T), ints(B, 3), floats(B, 3))


def reward_learner(objective, rows):
    return align.make_reward_learner(LM, objective=objective(LM)), align.RewardHParams(), None, rows


def direct_learner(objective, rows=PAIRS, *, referenced=True, **others):
    rows = align.Referenced(rows, floats(B, 2), **others) if referenced else rows
    return align.make_direct_learner(LM, objective=objective(LM)), align.DirectHParams(), None, rows


FEEDBACK = {
    "comparisons": lambda: reward_learner(align.comparison_objective, PAIRS),
    "rankings": lambda: reward_learner(align.ranking_objective, RANKED),
    "ratings": lambda: reward_learner(align.rating_objective, RATED),
    "labels": lambda: reward_learner(align.label_objective, RATED),
    "dpo": lambda: direct_learner(align.dpo_objective),
    "ipo": lambda: direct_learner(align.ipo_objective),
    "kto": lambda: direct_learner(align.kto_objective, RATED, other=text(B, T)),
    "slic": lambda: direct_learner(align.slic_objective),
    "orpo": lambda: direct_learner(align.orpo_objective, referenced=False),
    "simpo": lambda: direct_learner(align.simpo_objective, referenced=False),
}
CONFIG = TextConfig(P, T, missing_stop="keep")
REWARD = align.model_reward(LM)
REWARD_MODEL = jax.eval_shape(lambda k, p: align.RewardModel(align.init_reward_params(k, LM, p)), KEY, PARAMS)
FROZEN = Frozen(PARAMS, REWARD_MODEL)
START = {"lm": PARAMS}


def rlhf(base=PARAMS, trunk="shared", critic=None, **settings):
    learner = align.make_rlhf_learner(LM, REWARD, CONFIG, epochs=2, minibatches=2, critic=critic, **settings)
    part, constants = jax.eval_shape(LORA, KEY, base)
    start = jax.eval_shape(lambda part: align.init_policy(LM, part, trunk=trunk), part)
    base = nets.overlay(base, constants)
    return learner, align.RLHFHParams(), start, text(B, P), Frozen(base, REWARD_MODEL, critic and base)


def grouped(method):
    learner = align.make_group_learner(LM, REWARD, CONFIG, group_size=2, method=method)
    return learner, method.hparams, START, text(B, P), FROZEN


def updates(hparams):
    learner = align.make_update_learner(LM, REWARD, CONFIG, group_size=2)
    return learner, hparams, START, text(B, P), FROZEN


def rounds():
    draw = lambda key: PaddedTokens(jnp.zeros((B, P), jnp.int32), jnp.ones((B, P)))
    learner = align.make_rounds_learner(
        LM, REWARD, CONFIG, draw, rounds=2, comparisons=B, reward_steps=2, policy_steps=2
    )
    start = {
        "policy": jax.eval_shape(lambda p: align.init_policy(LM, p), PARAMS),
        "reward": REWARD_MODEL.params,
    }
    return learner, align.RoundsHParams(), start, None, FROZEN


ALIGN = {
    "rlhf": rlhf,
    "rlhf over packed weights": lambda: rlhf(base=PACKED),
    "rlhf with all its options": lambda: rlhf(
        trunk="separate",
        critic=LM,
        target_kl=0.1,
        pretraining=lambda key: TokenBatch(jnp.zeros((B, 9), jnp.int32), None, jnp.ones((B, 9))),
    ),
    "grpo": lambda: grouped(align.GRPO),
    "dr-grpo": lambda: grouped(align.DR_GRPO),
    "gspo": lambda: grouped(align.GSPO),
    "rloo": lambda: grouped(align.RLOO),
    "reinforce++": lambda: grouped(align.REINFORCE_PLUS_PLUS),
    "four updates": lambda: updates(align.DRIFT),
    "rounds": rounds,
}
TEXTS = LANGUAGE | FEEDBACK | ALIGN


@pytest.mark.parametrize("name", mark_slow(TEXTS))
def test_learners_of_language_models_lower(name):
    check_step(*TEXTS[name]())


def test_an_optimiser_on_the_host_lowers():
    learner = pretrain.make_lm_learner(LM, optimizer=offload(make_optimizer()))
    check_step(learner, LM_HPARAMS, None, ROWS, calls={"annotate_device_placement"})


def test_generation_and_best_of_n_lower():
    best = functools.partial(align.best_of_n, LM, REWARD, CONFIG, n=2)
    check(jax.vmap(best, (None, None, 0, 0)), PARAMS, REWARD_MODEL, text(B, P), stacked(KEY, B))
    write = lambda params, prompt, key: generate(LM, params, prompt, key, CONFIG)
    check(jax.vmap(write, (None, 0, 0)), PACKED, text(B, P), stacked(KEY, B))


# Layer by layer

NET = nets.make_layered_net(4, (3, 3), 2)


def test_layerwise_learners_lower():
    images, labels = floats(B, 4), ints(B)
    check_step(pretrain.make_classifier_learner(NET), pretrain.ClassifierHParams(0.1), None, (images, labels))
    layer = pretrain.make_layer_autoencoders(NET)[1]
    frozen = jax.eval_shape(NET.init, KEY)["layers"][:1]
    check_step(
        pretrain.make_autoencoder_learner(NET, layer), pretrain.AutoencoderHParams(0.1), None, images, frozen
    )
