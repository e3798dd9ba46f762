"""Our mini-batch SGD's examples a second against a plain PyTorch loop of the same training, in turn.

Claim: 8 seeds of the digits' net train at least 3 times as fast as PyTorch trains them one after the other.

What was measured is in docs/benchmarks.md; PyTorch has one thread, its second slows it down. Where matrices
are large there is less to win: MNIST's net at batches of 100 (`--sizes 784 100 100 100 10 --num 6000
--batch-size 100`) was 2.1 times as fast [1.8, 2.7] when the digits' was 7.2 times.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.nets.layered import make_layered_net
from jaxrl_align.pretrain.layerwise import ClassifierHParams, finetune
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices


@dataclass(frozen=True)
class Config(ContestConfig):
    """Sigmoid classifiers on random images: the arithmetic of training does not depend on them."""

    sizes: tuple[int, ...] = (64, 100, 100, 100, 10)
    """Inputs, hidden layers, classes: the digits' net of the experiments."""
    num: int = 1_438
    """Images."""
    batch_size: int = 20
    seeds: int = 8
    epochs: int = 20
    """Of ours in a round; the peer takes one."""
    torch: str = ""
    """An interpreter with PyTorch; empty leaves it out."""


def ours(config: Config) -> peers.Round:
    """Return the measurement of all our seeds in one program."""
    net = make_layered_net(config.sizes[0], config.sizes[1:-1], config.sizes[-1])
    train = finetune(net, epochs=config.epochs, batch_size=config.batch_size)
    many = jax.jit(jax.vmap(lambda *args: train(*args)[0], (0, 0, None, None)))
    key_x, key_y, *keys = jax.random.split(jax.random.key(0), 2 + config.seeds)
    x = jax.random.uniform(key_x, (config.num, config.sizes[0]))
    data = x, jax.random.randint(key_y, (config.num,), 0, config.sizes[-1])
    keys = shard_members(jnp.stack(keys))
    params = shard_members(jax.vmap(net.init)(keys))
    hparams = ClassifierHParams(0.1)
    jax.block_until_ready(many(keys, params, data, hparams))
    taken = config.seeds * config.epochs * (config.num // config.batch_size * config.batch_size)

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(many(keys, params, data, hparams))
        return taken / (time.perf_counter() - begin)

    return measure


def main(config: Config) -> None:
    """Run ours and PyTorch, with one and with all threads, in turn."""
    use_cpu_devices()
    measure = ours(config)
    sizes = {"sizes": config.sizes, "num": config.num, "batch": config.batch_size, "seeds": config.seeds}
    what = f"mini-batch SGD on layers of {config.sizes}, {config.seeds} seeds"
    threads = sorted({1, len(jax.devices())})
    with rivals(config.torch, "torch_sgd", name="PyTorch", flag="torch", threads=threads, **sizes) as others:
        contest(what, "examples/s", {"ours": measure} | others, config.rounds)


if __name__ == "__main__":
    run(Config, main)
