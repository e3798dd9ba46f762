"""Bad arrays for losses, bad hyperparameters and counts for learners."""

import jax
import jax.numpy as jnp
import optax

from jaxrl_align import actors, envs, losses, nets, rl, runtime
from jaxrl_align.learner import train

T, BT = jnp.ones(7), jnp.ones((4, 7))
ENV = envs.make_tabular_environment(envs.make_mdp([[[1.0]]], [[1.0]], 0.9))
TABLE = nets.Net(lambda key, obs: jnp.zeros(1), lambda params, obs: (jnp.zeros(1), jnp.zeros(())))
VALUES = actors.make_value_actor(ENV, nets.make_table(1, 1), num_envs=4, num_steps=2)
ACTOR = actors.make_actor(ENV, TABLE, num_envs=4, num_steps=2)


def make(**settings):
    return rl.make_actor_critic(ACTOR, segment_length=1, **settings)


def begin(hparams):
    return make().init(jax.random.key(0), hparams)


def step(learner, hparams):
    """Trace one step, without compiling it."""
    return jax.eval_shape(lambda key: learner.step(learner.init(key, hparams)), jax.random.key(0))


CASES = {
    "gae of a batch": (
        lambda: losses.gae(BT, BT, BT, BT, BT),
        AssertionError,
        r"gae takes one time series, each array \[T\]; got r_t \[4, 7\], .*; for a batch use jax.vmap\(gae\)",
    ),
    "gae of a number": (
        lambda: losses.gae(T, T, 0.95, T, T),
        AssertionError,
        r"lambda_t \[\], .*; fill a number with jnp.full",
    ),
    "series of two lengths": (
        lambda: losses.lambda_returns(T, T, T, jnp.ones(8)),
        AssertionError,
        r"lambda_returns takes one time series.*r_t \[7\].*v_t \[8\]",
    ),
    "scores of two shapes": (
        lambda: losses.bradley_terry(jnp.ones(3), jnp.ones((3, 1))),
        AssertionError,
        r"the arrays of bradley_terry must have one shape; got score_chosen \[3\], score_rejected \[3, 1\]",
    ),
    "a margin that would broadcast": (
        lambda: losses.bradley_terry(jnp.ones(3), jnp.ones(3), margin=jnp.ones((3, 1))),
        AssertionError,
        r"margin must be one number or of shape \(3,\); got shape \(3, 1\)",
    ),
    "a clip that would broadcast": (
        lambda: losses.clipped_surrogate(T, T, T, clip=jnp.ones((7, 1))),
        AssertionError,
        r"clip must be one number or of shape \(7,\); got shape \(7, 1\)",
    ),
    "SimPO's margin": (
        lambda: losses.simpo(T, T, beta=1.0, margin=jnp.ones((7, 1))),
        AssertionError,
        r"margin must be one number or of shape \(7,\)",
    ),
    "DPO's beta": (
        lambda: losses.dpo(T, T, T, T, beta=jnp.ones((7, 1))),
        AssertionError,
        r"beta must be one number or of shape \(7,\)",
    ),
    "a series' bootstrap": (
        lambda: losses.discounted_returns(T, T, T),
        AssertionError,
        r"bootstrap must be one number or of shape \(\); got shape \(7,\)",
    ),
    "KTO's weight": (
        lambda: losses.kto(T, T, T, T, beta=1.0, desirable_weight=jnp.ones((7, 1))),
        AssertionError,
        r"desirable_weight must be one number or of shape \(7,\); got shape \(7, 1\)",
    ),
    "KTO's other weight": (
        lambda: losses.kto(T, T, T, T, beta=1.0, undesirable_weight=jnp.ones((5, 7))),
        AssertionError,
        "undesirable_weight must be one number or of shape",
    ),
    "a token's smoothing": (
        lambda: losses.next_token_loss(BT, jnp.zeros(4, int), label_smoothing=jnp.ones((4, 1))),
        AssertionError,
        r"label_smoothing must be one number or of shape \(4,\); got shape \(4, 1\)",
    ),
    "a token's z-loss": (
        lambda: losses.next_token_loss(BT, jnp.zeros(4, int), z_loss=jnp.ones((4, 1))),
        AssertionError,
        r"z_loss must be one number or of shape \(4,\)",
    ),
    "Huber's delta": (lambda: losses.huber(T, delta=jnp.ones((7, 1))), AssertionError, "delta must be one"),
}
WHOLE = "must be a whole number of at least 1; got"
CASES |= {
    "hparams as a dict": (
        lambda: begin({"learning_rate": 0.1}),
        ValueError,
        "hparams must be a NamedTuple such as PPOHParams; got dict; pass",
    ),
    "hparams as a number": (lambda: begin(0.1), ValueError, "hparams must be a NamedTuple .*; got float"),
    "no hparams": (lambda: begin(None), ValueError, "hparams must be a NamedTuple .*; got NoneType"),
    "a NaN rate": (
        lambda: begin(rl.PPOHParams(learning_rate=jnp.nan)),
        ValueError,
        "learning_rate must be a number; got nan",
    ),
    "a rate below 0": (
        lambda: begin(rl.PPOHParams(learning_rate=-1.0)),
        ValueError,
        "learning_rate must be at least 0; got -1.0; correct the hyperparameters",
    ),
    "a discount above 1": (
        lambda: begin(rl.PPOHParams(gamma=jnp.array([0.9, 1.5]))),
        ValueError,
        r"gamma must be from 0 to 1; got \[0.9 1.5\]",
    ),
    "a NaN rate of one member": (
        lambda: runtime.train_members(
            make(),
            rl.PPOHParams(learning_rate=jnp.array([0.1, jnp.nan])),
            runtime.MembersConfig(out="nowhere", seeds=2),
            1,
        ),
        ValueError,
        "learning_rate must be a number; got nan",
    ),
    "hparams that are a class": (
        lambda: begin(rl.PPOHParams),
        ValueError,
        r"hparams must be an object; got the class PPOHParams; write PPOHParams\(\)",
    ),
    "a rate that is a schedule": (
        lambda: begin(rl.PPOHParams(learning_rate=optax.linear_schedule(1e-3, 0.0, 10))),
        ValueError,
        "learning_rate must be a number; got 'function'; for a learning rate that falls, .* total_steps=",
    ),
    "a clip in words": (
        lambda: begin(rl.PPOHParams(clip="0.2")),
        ValueError,
        "clip must be a number; got '0.2'",
    ),
    "a damping below 0": (
        lambda: begin(rl.TRPOHParams(damping=-1.0)),
        ValueError,
        "damping must be at least 0; got -1.0",
    ),
    "an epsilon above 1": (
        lambda: begin(rl.QLearningHParams(epsilon=3.0)),
        ValueError,
        "epsilon must be from 0 to 1; got 3.0",
    ),
    "a decay below 0": (
        lambda: begin(rl.QLearningHParams(decay=-1.0)),
        ValueError,
        "decay must be at least 0",
    ),
    "an alpha below 0": (lambda: begin(rl.DQNHParams(alpha=-1.0)), ValueError, "alpha must be at least 0"),
    "a target rate above 1": (
        lambda: begin(rl.DQNHParams(target_rate=2.0)),
        ValueError,
        "target_rate must be from 0 to 1",
    ),
    "a support that falls": (
        lambda: rl.c51_loss(jnp.array([1.0, 0.0, -1.0])),
        ValueError,
        r"support must rise in even steps; got steps from -1 to -1; take nets.support_between",
    ),
    "a support of uneven steps": (
        lambda: nets.make_q_net(2, support=jnp.array([0.0, 1.0, 3.0])),
        ValueError,
        r"support must rise in even steps; got steps from 1 to 2; take nets.support_between",
    ),
    "a support of one atom": (
        lambda: nets.make_q_net(2, support=jnp.ones(1)),
        ValueError,
        r"support must be \[K\] returns, K >= 2; got shape \(1,\)",
    ),
    **{
        f"a complete optimiser of {name}": (
            lambda build=build: build(optax.adam(1e-3)),
            ValueError,
            r"optimizer must leave out its learning rate and sign; .* not optax.adam\(rate\)",
        )
        for name, build in {
            "PPO": lambda rule: make(optimizer=rule),
            "TRPO": lambda rule: rl.make_trpo(ACTOR._replace(split_params=lambda p: (p, p)), optimizer=rule),
            "DQN": lambda rule: rl.make_dqn(VALUES, capacity=80, optimizer=rule),
            "online Q-learning": lambda rule: rl.make_online_q(VALUES, optimizer=rule),
            "search": lambda rule: rl.make_search_learner(ACTOR, TABLE.apply, None, optimizer=rule),
        }.items()
    },
    "TRPO of a net with memory": (
        lambda: rl.make_trpo(
            actors.make_recurrent_actor(
                "CartPole-v1", nets.with_memory(nets.make_actor_critic_net(2)), num_envs=1, num_steps=1
            )
        ),
        ValueError,
        "declares no Net.split_params: .*nets with memory share theirs: take make_actor_critic",
    ),
    "no epoch": (lambda: make(epochs=0), ValueError, f"epochs {WHOLE} 0"),
    "a negative epoch": (lambda: make(epochs=-1), ValueError, f"epochs {WHOLE} -1"),
    "no minibatch": (
        lambda: step(make(minibatches=0), rl.PPOHParams()),
        ValueError,
        "minibatches must divide segments per rollout; got .*=8, minibatches=0; try minibatches=1 or 2",
    ),
    "no step in all": (
        lambda: step(make(total_steps=0), rl.PPOHParams()),
        ValueError,
        f"total_steps {WHOLE} 0",
    ),
    "half a step in all": (
        lambda: step(make(total_steps=2.5), rl.PPOHParams()),
        ValueError,
        f"total_steps {WHOLE} 2.5",
    ),
    "no step to train": (lambda: train(make(), 0), ValueError, f"num_steps {WHOLE} 0"),
    "no epoch of TRPO's critic": (
        lambda: rl.make_trpo(ACTOR._replace(split_params=lambda p: (p, p)), critic_epochs=0),
        ValueError,
        f"critic_epochs {WHOLE} 0",
    ),
    "no iteration of TRPO's solver": (
        lambda: rl.make_trpo(ACTOR._replace(split_params=lambda p: (p, p)), cg_iterations=0),
        ValueError,
        f"cg_iterations {WHOLE} 0",
    ),
    "no trial of TRPO's line search": (
        lambda: rl.make_trpo(ACTOR._replace(split_params=lambda p: (p, p)), max_trials=0),
        ValueError,
        f"max_trials {WHOLE} 0",
    ),
    "no epoch of search": (
        lambda: rl.make_search_learner(ACTOR, TABLE.apply, None, epochs=0),
        ValueError,
        f"epochs {WHOLE} 0",
    ),
    "no DQN step in all": (
        lambda: step(rl.make_dqn(VALUES, capacity=80, total_steps=0), rl.DQNHParams()),
        ValueError,
        f"total_steps {WHOLE} 0",
    ),
    "half a DQN update": (
        lambda: rl.make_dqn(VALUES, capacity=80, updates=1.5),
        ValueError,
        f"updates {WHOLE} 1.5",
    ),
    "target_kl of a loss without a KL": (
        lambda: step(rl.make_a2c(ACTOR, target_kl=0.1), rl.PolicyGradientHParams()),
        ValueError,
        "target_kl needs a loss that reports policy/approxkl_avg, as ppo_loss does; got one of loss/pol",
    ),
}
