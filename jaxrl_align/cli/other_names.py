"""What other libraries call a flag: named in the error, never taken as a second name."""

from collections.abc import Collection, Sequence

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "epochs": ("passes",),
    "num_epochs": ("passes",),
    "num_train_epochs": ("passes",),
    "max_steps": ("steps",),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("microbatches", "minibatches"),
    "lora_rank": ("rank",),
    "lora_r": ("rank",),
    "r": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "lora_target_modules": ("targets",),
    "target_modules": ("targets",),
    "use_peft": ("tuning",),
    "max_length": ("length", "completion_length", "response_length", "tokens"),
    "max_prompt_length": ("prompt_length",),
    "max_completion_length": ("completion_length", "response_length"),
    "max_new_tokens": ("response_length", "tokens"),
    "max_tokens": ("response_length", "tokens"),
    "tokens": ("response_length",),
    "num_generations": ("group_size",),
    "init_kl_coef": ("kl_coef",),
    "cliprange": ("clip",),
    "vf_coef": ("value_coef",),
    "model_name_or_path": ("model",),
    "dataset_name": ("data",),
    "dataset": ("data",),
    "output_dir": ("out",),
    "reward_model": ("reward",),
    "reward_model_path": ("reward",),
    "reward_funcs": ("reward",),
    "eval_steps": ("every",),
}
"""TRL's, peft's and other usual names, and ours of the same thing, the first that a command has."""


def refuse_other_names(command: str, known: Collection[str], argv: Sequence[str]) -> None:
    """Raise ValueError for a flag that the command has under another name.

    Args:
      command: its name.
      known: its fields.
      argv: the arguments behind it.
    """
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        ours = [own for own in OTHER_NAMES.get(name, ()) if own in known]
        if argument.startswith("--") and name not in known and ours:
            flag = "--" + ours[0].replace("_", "-")
            raise ValueError(f"{argument.partition('=')[0]} is no flag of {command}; it is called {flag}")
