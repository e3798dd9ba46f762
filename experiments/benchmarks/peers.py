"""Other libraries, each measured in its own interpreter, a round at a time, in turn with ours.

A benchmark starts `PYTHON peers.py NAME ARGUMENTS`, waits for "ready", and asks for a round with an empty
line; the answer is a rate a second. Only the standard library is imported here, because the interpreter
that runs this file has the peer and not this library.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Round = Callable[[], float]


def start(python: str, name: str, **arguments: Any) -> subprocess.Popen:
    """Start a peer and wait until it has compiled; `compile_seconds` is what it says that took, or nan.

    Raises:
      ImportError: the interpreter is missing, or lacks the peer.
    """
    try:
        process = subprocess.Popen(
            [python, __file__, name, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise ImportError(f"no interpreter {python} for {name}: {error}") from error
    word, _, seconds = process.stdout.readline().partition(" ")
    if word != "ready":
        last = (process.communicate()[1].strip().splitlines() or ["no message"])[-1]
        raise ImportError(f"{python} cannot run {name} ({last}); install it there: {INSTALL[name]}")
    process.compile_seconds = float(seconds)
    return process


def ask(process: subprocess.Popen) -> float:
    """Return the rate of one more round."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def stop(process: subprocess.Popen) -> None:
    """Let the peer end."""
    process.communicate()


INSTALL = {
    "flashbax": "pip install flashbax==0.1.3 jax",
    "sb3": "pip install stable-baselines3 torch",
    "sb3_ppo": "pip install stable-baselines3 torch",
    "rejax": "pip install rejax==0.1.3 gymnax==0.0.9",
    "rejax_ppo": "pip install rejax==0.1.3 gymnax==0.0.9",
    "torch_sgd": "pip install torch",
    "transformers_generate": "pip install transformers torch",
    "trl_sft": "pip install trl torch",
    "trl_reward": "pip install trl torch peft",
    "peft_lora": "pip install peft==0.21.2 transformers torch",
    "purejaxrl": "pip install gymnax==0.0.9 distrax, and give the folder of its ppo.py",
}


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


def _gpt2(vocab: int, width: int, layers: int, heads: int, context: int, threads: int) -> Any:
    """Return a random GPT-2 in evaluation mode, for `threads` torch threads."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def transformers_generate(
    shape: dict[str, int], batch: int, prompt: int, new: int, sample: bool, repeats: int, threads: int
) -> Round:
    """Generate `new` tokens after each of `batch` prompts with the cache, no early stop, `repeats` times."""
    import torch

    model = _gpt2(**shape, threads=threads)
    tokens = torch.randint(2, shape["vocab"], (batch, prompt))
    arguments = {
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": new,
        "do_sample": sample,
        "top_k": 0 if sample else None,
        "use_cache": True,
        "pad_token_id": 0,
    }

    @torch.inference_mode()
    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            written = model.generate(tokens, **arguments)
        seconds = time.perf_counter() - begin
        if written.shape != (batch, prompt + new):
            raise RuntimeError(f"expected {(batch, prompt + new)} tokens, got {tuple(written.shape)}")
        return repeats * batch * new / seconds

    measure()
    return measure


def trl_sft(shape: dict[str, int], batch: int, length: int, steps: int, threads: int) -> Round:
    """Fine-tune by trl's SFTTrainer with AdamW on rows of `length` tokens, `steps` steps a round."""
    import torch
    from trl import SFTConfig, SFTTrainer

    rows = torch.randint(2, shape["vocab"], (batch * (steps + 2), length)).tolist()
    model = _gpt2(**shape, threads=threads)
    rate = _trl_round(SFTTrainer, SFTConfig, model, {"input_ids": rows}, batch, length, steps)
    return lambda: rate() * length


def trl_reward(
    model: dict[str, int] | str,
    targets: list[str] | None,
    rank: int,
    batch: int,
    prompt: int,
    completion: int,
    steps: int,
    threads: int,
) -> Round:
    """Train a reward model by trl's RewardTrainer with AdamW, `steps` steps a round, pairs a second.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32; with targets LoRA is trained.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.set_num_threads(threads)
    if isinstance(model, str):
        kind = AutoModelForSequenceClassification
        whole = kind.from_pretrained(model, dtype=torch.float32, num_labels=1)
    else:
        whole = AutoModelForSequenceClassification.from_config(_gpt2(**model, threads=threads).config)
        whole.config.num_labels = 1
        whole.score = torch.nn.Linear(whole.config.hidden_size, 1, bias=False)
    whole.config.pad_token_id = 0
    lora = None
    if targets is not None:
        from peft import LoraConfig

        lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, target_modules=targets)
    count, vocab = batch * (steps + 2), whole.config.vocab_size
    first = torch.randint(2, vocab, (count, prompt))
    side = lambda: torch.cat([first, torch.randint(2, vocab, (count, completion))], 1).tolist()
    rows = {"chosen_ids": side(), "rejected_ids": side()}
    length = prompt + completion
    return _trl_round(RewardTrainer, RewardConfig, whole, rows, batch, length, steps, peft_config=lora)


def _trl_round(
    trainer: Any, config: Any, model: Any, rows: dict, batch: int, length: int, steps: int, **options: Any
) -> Round:
    """Return the rate, rows a second, of one of trl's trainers from its second step to its last."""
    import os
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    class Watch(TrainerCallback):
        """Notes when the second and the last step begin and end."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.end = time.perf_counter()

    watch = Watch()
    made = trainer(
        model=model,
        args=config(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            max_steps=steps + 1,
            max_length=length,
            learning_rate=1e-3,
            optim="adamw_torch",
            weight_decay=0.01,
            bf16=False,
            fp16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=_tokenizer(PreTrainedTokenizerFast, model.config.vocab_size),
        callbacks=[watch],
        **options,
    )

    def measure() -> float:
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            made.train()
        return steps * batch / (watch.end - watch.begin)

    measure()
    return measure


def peft_lora(
    model: dict[str, int] | str,
    targets: list[str],
    rank: int,
    batch: int,
    length: int,
    steps: int,
    threads: int,
) -> Round:
    """Train peft's LoRA by AdamW behind a clipped norm, `steps` steps a round, tokens a second.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if isinstance(model, str):
        torch.set_num_threads(threads)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    else:
        base = _gpt2(**model, threads=threads)
    tuned = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)).train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    rows = torch.randint(2, base.config.vocab_size, (batch, length))

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            tuned(input_ids=rows, labels=rows).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return steps * batch * length / (time.perf_counter() - begin)

    measure()
    return measure


def _tokenizer(kind: Any, vocab: int) -> Any:
    """Return a tokenizer of `vocab` words, which trl wants even for rows that are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(vocab)}
    return kind(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), pad_token="w0", eos_token="w1")


def serve(name: str, arguments: dict[str, Any]) -> None:
    """Answer every line with a round's rate."""
    known = (flashbax, sb3, sb3_ppo, rejax, rejax_ppo, purejaxrl, torch_sgd)
    known += (transformers_generate, trl_sft, trl_reward, peft_lora)
    measure = {make.__name__: make for make in known}[name](**arguments)
    print("ready", getattr(measure, "compile_seconds", "nan"), flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


if __name__ == "__main__":
    # This folder leads the path, and a module here may bear a peer's name.
    sys.path = sys.path[1:]
    serve(sys.argv[1], json.loads(sys.argv[2]))
