"""Flags that commands share: groups of fields, which a command's dataclass is composed of."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxrl_align.runtime.folder import KeepConfig

Ways = Literal["lora", "dora", "qlora", "ia3", "prompt", "prefix", "head", "full"]
RECORDED = ("command", "data_sha256", "held_out_sha256", "pretraining_sha256")
"""What a run's `config.json` holds beside its flags."""

RATES = {
    "sft": (2e-5, 3e-4),
    "reward": (1e-5, 3e-4),
    "direct": (1e-6, 1e-4),
    "ppo": (5e-6, 3e-4),
    "groups": (5e-6, 1e-3),
}
"""Learning rates of each kind of training: of all weights, and of a LoRA. They suit the tens of updates that
a laptop takes; PPO takes several gradient steps an update, the group methods one. The virtual tokens of a
prompt or prefix, and IA3's vectors, take ten times the LoRA's: they are few, and start far from where they
end."""


@dataclass(frozen=True)
class ModelOptions:
    """The model that training starts from, and where the new one goes."""

    model: str
    """A Hugging Face folder of a language model, or a PEFT folder of an adapter over one."""
    out: str
    """A new folder: the model, its card README.md, and run/ with metrics and checkpoints."""
    base: str | None = None
    """Where --model is an adapter: its base, if not where adapter_config.json says."""
    hub: bool = False
    """Take --model (and --base) for names on the Hugging Face hub, and download them (extra [hub])."""
    remat: bool = False
    """Compute each block again in the backward pass: less memory, about a third more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; weights that are trained keep theirs. bfloat16 is for GPUs and TPUs."""
    unroll: bool = False
    """Compile the layers one behind the other, not as a loop: faster on a GPU, and longer to compile."""


@dataclass(frozen=True)
class TuningOptions:
    """What is trained. All but "full" write a PEFT folder over the base, unless --merge."""

    tuning: Ways = "lora"
    """An adapter on linear layers (lora, dora, ia3; qlora: lora over kernels of 4 bits), virtual tokens
    before every text (prompt, prefix), a reward model's head alone (head), or all weights."""
    rank: int = 8
    """Of lora, dora and qlora."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank; None, alpha = 2 rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped while it trains."""
    targets: tuple[str, ...] = ("*query", "*value")
    """Layers that lora, dora and qlora adapt: "*" for all, or names such as "*up"."""
    virtual_tokens: int = 20
    """Of prompt and prefix."""
    merge: bool = False
    """Write a whole model, the adapter folded into its weights."""


@dataclass(frozen=True)
class DataOptions:
    """Rows to learn from: JSON lines, also .gz."""

    data: str
    """A JSONL file; see the command's description for its fields."""
    held_out: str | None = "0.1"
    """A share of the rows, or a file of rows, that is not trained on but judges the run; None for none."""
    chat: bool = False
    """Prompts that are plain texts are the user's turn in the model's chat template."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read or do not fit, and list them, instead of ending in an error."""


@dataclass(frozen=True)
class LengthOptions:
    """Tokens that rows are padded to; None takes what the rows need, at most the model's context."""

    prompt_length: int | None = None
    """Of a longer prompt the end is read."""
    completion_length: int | None = None
    """A longer completion is never cut: its row is refused, or left out with --skip-bad-rows."""


@dataclass(frozen=True)
class RunOptions(KeepConfig):
    """How long, how fast, and what is shown on the way."""

    steps: int = 100
    """Updates."""
    passes: float | None = None
    """Passes over the rows, in the place of steps."""
    batch_size: int = 8
    """Rows, or prompts, of one update."""
    learning_rate: float | None = None
    """None takes the default of the method and the tuning, which is printed. It falls to 0 over the run."""
    every: int = 20
    """Steps between evaluations, sample tables and checkpoints; by time there are more checkpoints."""
    samples: int = 3
    """Prompts of the sample tables; 0 for none."""
    sample_tokens: int = 48
    """The most tokens that a sample has."""
    seed: int = 0
    """Of what is drawn: the order of rows, new weights, answers."""
    config: str | None = None
    """A .yaml or .json file of flags, such as the run/config.json of an earlier run; flags given here win."""


def flags_of(options: Any) -> dict[str, Any]:
    """Return the flags of a command's dataclass by name, those of its groups beside its own."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        flat |= flags_of(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flat


def record(command: str, options: Any, **more: Any) -> dict[str, Any]:
    """Return what a run's `config.json` holds: the command, its flags, and what else names the run."""
    flags = {name: value for name, value in flags_of(options).items() if name != "config"}
    return {"command": command, **flags, **more}


def learning_rate(kind: str, run: RunOptions, tuning: TuningOptions) -> float:
    """Return the learning rate that was given, or the default of a kind of training and a tuning."""
    if run.learning_rate is not None:
        return run.learning_rate
    full, lora = RATES[kind]
    return {"full": full, "lora": lora, "dora": lora, "qlora": lora}.get(tuning.tuning, 10 * lora)


def check_run(run: RunOptions) -> None:
    """Raise ValueError for counts and a learning rate that cannot be."""
    least = {"steps": 1, "batch_size": 1, "every": 1, "samples": 0, "sample_tokens": 1}
    for name, bound in least.items():
        if getattr(run, name) < bound:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {bound}; got {getattr(run, name)}")
    if run.passes is not None and not run.passes > 0:
        raise ValueError(f"--passes must be above 0; got {run.passes}; 1 reads every row once")
    if run.learning_rate is not None and not run.learning_rate > 0:
        raise ValueError(
            f"--learning-rate must be above 0; got {run.learning_rate}; leave it out for the usual"
        )


def count_steps(run: RunOptions, rows: int) -> int:
    """Return the number of updates: as given, or as many as the passes take."""
    return run.steps if run.passes is None else max(1, round(run.passes * rows / run.batch_size))
