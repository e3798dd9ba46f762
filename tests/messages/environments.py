"""Bad environments, spaces, counts and actions."""

import jax
import jax.numpy as jnp
from gymnasium import spaces as host_spaces

from jaxrl_align import actors, envs, losses, nets

WHOLE = "must be a whole number of at least 1; got"
CARTPOLE_NET = nets.make_actor_critic_net(2)


class World:
    """An environment of your own, right but for what a case changes."""

    def __init__(self, obs=0.0, after=None, final=None, reward=0.0, ended=False, state=0, space=2):
        self.obs = jnp.asarray(obs) if isinstance(obs, float) else obs
        self.after, self.final = (self.obs if x is None else x for x in (after, final))
        self.values = jnp.asarray(reward), jnp.asarray(ended), jnp.asarray(False)
        self.state, self.space = state, envs.spaces.Discrete(space) if isinstance(space, int) else space

    def reset(self, key, params):
        return self.obs, jnp.int32(0)

    def step(self, key, state, action, params):
        return self.after, jnp.asarray(self.state), *self.values, {"final_observation": self.final}

    def action_space(self, params):
        return self.space


class Spaceless:
    reset, step = World.reset, World.step


class HostSpaces:
    """A vector environment of these spaces."""

    def __init__(self, actions, observations):
        self.single_action_space, self.single_observation_space = actions, observations

    def close(self):
        pass


def act(env, **sizes):
    return actors.make_actor(env, CARTPOLE_NET, **{"num_envs": 2, "num_steps": 2} | sizes)


def evaluate(action, space=2, **more):
    """Trace an evaluation of the policy that always plays one action."""
    sizes = {"num_episodes": 2, "max_steps": 2} | more
    env = (World(space=space), None)
    return envs.evaluate_policy(env, lambda key, obs: action, jax.random.key(0), **sizes)


def world(**wrong):
    return lambda: envs.make_environment((World(**wrong), None))


def on_host(actions, observations):
    return lambda: envs.host.HostEnvironment(lambda num_envs: HostSpaces(actions, observations))


BOX = envs.spaces.Box(-1.0, 1.0, (2,))
DICT = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.int32)}
CASES = {
    "a class": (
        lambda: envs.make_environment((World, None)),
        ValueError,
        r"class World; write \(World\(\), p",
    ),
    "half an environment": (lambda: act("CartPole-v1", num_envs=1.5), ValueError, f"num_envs {WHOLE} 1.5"),
    "environments as text": (lambda: act("CartPole-v1", num_envs="8"), ValueError, f"num_envs {WHOLE} '8'"),
    "no environments": (lambda: act("CartPole-v1", num_envs=None), ValueError, f"num_envs {WHOLE} None"),
    "half a step": (lambda: act("CartPole-v1", num_steps=2.0), ValueError, f"num_steps {WHOLE} 2.0"),
    "no steps": (lambda: act("CartPole-v1", num_steps=-1), ValueError, f"num_steps {WHOLE} -1"),
    "half an episode": (lambda: evaluate(0, num_episodes=0.5), ValueError, f"num_episodes {WHOLE} 0.5"),
    "no limit": (lambda: evaluate(0, max_steps=None), ValueError, f"max_steps {WHOLE} None"),
    "no action space": (
        lambda: envs.make_environment((Spaceless(), None)),
        ValueError,
        r"must have reset, step and action_space\(params\).*; got Spaceless with no action_space; return",
    ),
    "an action space of None": (world(space=None), ValueError, "got World with the space None; return for"),
    "an empty observation": (
        world(obs=jnp.zeros((3, 0))),
        ValueError,
        r"must hold at least one number; World.reset returns none; return jnp.zeros\(1\)",
    ),
    "an observation of nothing": (world(obs={}), ValueError, "must hold at least one number"),
    "a vector of rewards": (
        world(reward=[1.0]),
        ValueError,
        r"reward must be one number, of shape \(\); World.step returns shape \(1,\); index or sum it",
    ),
    "a vector of endings": (world(ended=[True, False]), ValueError, r"terminated must be .* shape \(2,\)"),
    "an observation that grows": (
        world(obs=jnp.zeros(2), after=jnp.zeros(3)),
        ValueError,
        r"step's observation must be what reset returns, float32\[2\]; World.step returns float32\[3\]; give",
    ),
    "an observation of another type": (
        world(obs=DICT, after=DICT | {"b": jnp.zeros(())}),
        ValueError,
        r"observation\['b'\] must be what reset returns, int32\[\]; World.step returns float32\[\]",
    ),
    "an observation that lacks a part": (
        world(obs=DICT, after={"a": jnp.zeros(2)}),
        ValueError,
        r"observation\['b'\] must be .* int32\[\]; World.step returns nothing",
    ),
    "another final observation": (
        world(obs=jnp.zeros(2), final=jnp.zeros(())),
        ValueError,
        r"step's final_observation must be what reset returns, float32\[2\]; World.step returns float32\[\]",
    ),
    "a state that changes its type": (
        world(state=0.0),
        ValueError,
        r"step's state must be what reset returns, int32\[\]; World.step returns float32\[\]; give both",
    ),
    "a fractional action": (
        lambda: evaluate(0.5),
        ValueError,
        r"action must be int32 of shape \(\) in this Discrete; got float32 of shape \(\); .*argmax",
    ),
    "an action that is a truth": (lambda: evaluate(jnp.array(True)), ValueError, "int32 .* got bool of"),
    "one action too many": (
        lambda: evaluate(jnp.zeros(2, jnp.int32)),
        ValueError,
        r"int32 of shape \(\) in this Discrete; got int32 of shape \(2,\); return one action for the one",
    ),
    "a continuous action of another shape": (
        lambda: evaluate(jnp.zeros(()), BOX, distribution=losses.DiagonalGaussian),
        ValueError,
        r"action must be float32 of shape \(2,\) in this Box; got float32 of shape \(\)",
    ),
    "actions that are a matrix": (
        lambda: act(
            (World(space=envs.spaces.Box(-1.0, 1.0, (2, 3))), None), distribution=losses.TanhGaussian
        ),
        ValueError,
        r"a Box's actions must be a vector \[D\]; got shape \(2, 3\); .* a Box of shape \(6,\), and reshape",
    ),
    "actions that are a number": (
        lambda: act(
            (World(space=envs.spaces.Box(-1.0, 1.0, ())), None), distribution=losses.DiagonalGaussian
        ),
        ValueError,
        r"a Box's actions must be a vector \[D\]; got shape \(\); .* a Box of shape \(1,\)",
    ),
    "a memory that does not fit": (
        lambda: actors.evaluate_recurrent_policy(
            "CartPole-v1",
            nets.with_memory(nets.make_actor_critic_net(3)),
            None,
            jax.random.key(0),
            num_episodes=1,
            max_steps=1,
        ),
        ValueError,
        r"must return a policy of shape \(2,\)",
    ),
    "several parts for a net of one array": (
        lambda: act((World(obs=DICT), None)),
        ValueError,
        "observations that are one array; got dict of 2; put nets.flatten_observations in front of it",
    ),
    "several parts for a memory": (
        lambda: nets.with_memory(CARTPOLE_NET).init(jax.random.key(0), (1.0, 2.0)),
        ValueError,
        "got tuple of 2; put nets.flatten_observations",
    ),
    "several parts for action values": (
        lambda: actors.make_value_actor((World(obs=DICT), None), nets.make_q_net(2), num_envs=1, num_steps=1),
        ValueError,
        "got dict of 2; put nets.flatten_observations",
    ),
    "a text for an action": (
        on_host(host_spaces.Text(3), host_spaces.Box(0.0, 1.0, (1,))),
        ValueError,
        "actions must be of a Discrete, .* got Text; wrap .* gymnasium.wrappers.TransformAction",
    ),
    "a sequence for an observation": (
        on_host(host_spaces.Discrete(2), host_spaces.Sequence(host_spaces.Discrete(2))),
        ValueError,
        "observations must be of a Discrete, .* or a Dict or Tuple of these; got Sequence; wrap",
    ),
}
