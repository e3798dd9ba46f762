"""Libraries that train agents, and one classifier, as `peers.py` measures them.

Only the standard library is imported here outside of functions; see `peers.py`.
"""

import sys
import time
from typing import Any

from peers import Round


def flashbax(capacity: int, batch: int, steps: int, prioritised: bool) -> Round:
    """Add one transition, draw a batch and, with priorities, set them anew: `steps` times in one scan."""
    import flashbax
    import jax
    import jax.numpy as jnp

    one = {
        "obs": jnp.zeros(4),
        "action": jnp.zeros((), jnp.int32),
        "reward": jnp.zeros(()),
        "terminated": jnp.zeros((), bool),
        "truncated": jnp.zeros((), bool),
    }
    make = flashbax.make_prioritised_flat_buffer if prioritised else flashbax.make_flat_buffer
    buffer = make(max_length=capacity, min_length=batch, sample_batch_size=batch, add_batch_size=None)

    def body(state: Any, key: Any) -> Any:
        state = buffer.add(state, one)
        sample = buffer.sample(state, key)
        if prioritised:
            state = buffer.set_priorities(state, sample.indices, sample.probabilities + 0.1)
        first, second = sample.experience.first, sample.experience.second
        return state, sum(x.sum() for x in first.values()) + second["obs"].sum()

    many = jax.jit(
        lambda state, key: jax.lax.scan(body, state, jax.random.split(key, steps)), donate_argnums=0
    )
    carry = [jax.block_until_ready(many(buffer.init(one), jax.random.key(0)))[0]]

    def measure() -> float:
        begin = time.perf_counter()
        carry[0], _ = jax.block_until_ready(many(carry[0], jax.random.key(1)))
        return steps / (time.perf_counter() - begin)

    return measure


def sb3(envs: int, steps: int, batch: int, capacity: int, hidden: list[int], timesteps: int) -> Round:
    """Train stable-baselines3's DQN on CartPole, one gradient step for `envs * steps` environment steps."""
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # faster than more for networks this small
    model = DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", envs),
        buffer_size=capacity,
        learning_starts=1_000,
        batch_size=batch,
        train_freq=steps,
        gradient_steps=1,
        policy_kwargs={"net_arch": hidden},
        device="cpu",
    )
    model.learn(2_000)

    def measure() -> float:
        before, begin = model.num_timesteps, time.perf_counter()
        model.learn(timesteps, reset_num_timesteps=False)
        return (model.num_timesteps - before) / (time.perf_counter() - begin)

    return measure


def sb3_ppo(envs: int, timesteps: int, settings: dict[str, Any]) -> Round:
    """Train stable-baselines3's PPO on CartPole, with its defaults where `settings` says nothing."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # faster than more for networks this small
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", envs), device="cpu", **settings)
    model.learn(1)

    def measure() -> float:
        before, begin = model.num_timesteps, time.perf_counter()
        model.learn(timesteps, reset_num_timesteps=False)
        return (model.num_timesteps - before) / (time.perf_counter() - begin)

    return measure


def rejax(envs: int, batch: int, capacity: int, hidden: list[int], timesteps: int) -> Round:
    """Train rejax's DQN on CartPole, one gradient step after each step of all environments, unevaluated."""
    import jax
    from rejax import DQN

    algorithm = DQN.create(
        env="CartPole-v1",
        num_envs=envs,
        buffer_size=capacity,
        batch_size=batch,
        fill_buffer=envs * batch,
        num_epochs=1,
        total_timesteps=timesteps,
        eval_freq=timesteps,
        skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": tuple(hidden)} if hidden != [64, 64] else {},
    ).replace(eval_callback=lambda algorithm, state, key: ())
    # The whole state comes back: of an output less, the compiler would drop what it does not need.
    train = jax.jit(lambda key: algorithm.train(rng=key)[0])
    jax.block_until_ready(train(jax.random.PRNGKey(0)))

    def measure() -> float:
        begin = time.perf_counter()
        state = jax.block_until_ready(train(jax.random.PRNGKey(1)))
        return int(state.global_step) / (time.perf_counter() - begin)

    return measure


def rejax_ppo(envs: int, seeds: int, steps: int, timesteps: int) -> Round:
    """Train rejax's PPO on CartPole, unevaluated: 4 epochs of 4 minibatches over `envs * steps` steps."""
    import jax
    from rejax import PPO

    algorithm = PPO.create(
        env="CartPole-v1",
        num_envs=envs,
        num_steps=steps,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=2.5e-4,
        max_grad_norm=0.5,
        total_timesteps=timesteps,
        eval_freq=timesteps,
        skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
    ).replace(eval_callback=lambda algorithm, state, key: ())
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    begin = time.perf_counter()
    train = jax.jit(jax.vmap(lambda key: algorithm.train(rng=key)[0])).lower(keys).compile()
    compile_seconds = time.perf_counter() - begin

    def measure() -> float:
        begin = time.perf_counter()
        state = jax.block_until_ready(train(keys))
        return int(state.global_step.sum()) / (time.perf_counter() - begin)

    measure.compile_seconds = compile_seconds
    return measure


def purejaxrl(envs: int, seeds: int, steps: int, timesteps: int, folder: str) -> Round:
    """Train purejaxrl's PPO on CartPole with the settings that its script has, and no printing."""
    from types import ModuleType

    import jax

    # Its wrappers import environments that CartPole does not need.
    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
        sys.modules[name] = ModuleType(name)
    sys.modules["brax"].envs = sys.modules["brax.envs"]
    training = sys.modules["brax.envs.wrappers.training"]
    training.EpisodeWrapper = training.AutoResetWrapper = object
    sys.path.insert(0, folder)
    from ppo import make_train

    config = {
        "LR": 2.5e-4,
        "NUM_ENVS": envs,
        "NUM_STEPS": steps,
        "TOTAL_TIMESTEPS": timesteps,
        "UPDATE_EPOCHS": 4,
        "NUM_MINIBATCHES": 4,
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
        "ENV_NAME": "CartPole-v1",
        "ANNEAL_LR": True,
    }
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    begin = time.perf_counter()
    train = jax.jit(jax.vmap(make_train(config))).lower(keys).compile()
    compile_seconds = time.perf_counter() - begin
    taken = seeds * (timesteps // (envs * steps)) * envs * steps

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(train(keys))
        return taken / (time.perf_counter() - begin)

    measure.compile_seconds = compile_seconds
    return measure


def torch_sgd(sizes: list[int], num: int, batch: int, seeds: int, threads: int) -> Round:
    """Train sigmoid classifiers by mini-batch SGD, one seed after the other, an epoch a round."""
    import torch

    torch.set_num_threads(threads)
    x, y = torch.rand(num, sizes[0]), torch.randint(sizes[-1], (num,))

    def make() -> tuple[Any, Any]:
        layers = []
        for rows, columns in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [torch.nn.Linear(rows, columns), torch.nn.Sigmoid()]
        net = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:]))
        return net, torch.optim.SGD(net.parameters(), lr=0.1)

    members = [make() for _ in range(seeds)]

    def measure() -> float:
        begin = time.perf_counter()
        for net, optimizer in members:
            for rows in torch.randperm(num)[: num // batch * batch].view(-1, batch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        return seeds * (num // batch * batch) / (time.perf_counter() - begin)

    measure()
    return measure
