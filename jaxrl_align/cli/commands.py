"""The commands of `jaxrl-align`, and how one is called."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxrl_align.cli import choosing, convert, evaluation, scoring, serve
from jaxrl_align.cli.config_files import field_names, suggest, with_config
from jaxrl_align.cli.experiments import comparing, launching, playing_runs, reporting
from jaxrl_align.cli.other_names import refuse_other_names
from jaxrl_align.cli.runs import direct_losses, fine_tuning, online_methods, reward_models
from jaxrl_align.runtime.cli import has_field, meshed, parse, user_errors


class Command(NamedTuple):
    """A command: its flags, and what it does with them."""

    options: type
    """A frozen dataclass, whose docstring is the help."""
    run: Callable[[Any, Sequence[str]], None]
    """`(options, the whole command as it was typed)`."""


COMMANDS: dict[str, Command] = {
    "sft": Command(fine_tuning.SFT, fine_tuning.run_sft),
    "reward": Command(reward_models.Reward, reward_models.run_reward),
    **{
        method.name: Command(kind, direct_losses.run_direct) for kind, method in direct_losses.METHODS.items()
    },
    "ppo": Command(online_methods.PPO, online_methods.run_ppo),
    "grpo": Command(online_methods.GRPO, online_methods.run_groups),
    "rloo": Command(online_methods.RLOO, online_methods.run_groups),
    "best-of-n": Command(choosing.BestOfN, choosing.run_best_of_n),
    "generate": Command(serve.Generate, serve.run_generate),
    "chat": Command(serve.Chat, serve.run_chat),
    "score": Command(scoring.ScoreRows, scoring.run_score),
    "evaluate": Command(evaluation.Evaluate, evaluation.run_evaluate),
    "merge": Command(convert.Merge, convert.run_merge),
    "import": Command(convert.Import, convert.run_import),
    "list": Command(launching.List, launching.run_list),
    "run": Command(launching.Run, lambda options, typed: launching.run_experiment(typed[1:])),
    "resume": Command(
        launching.Resume, lambda options, typed: launching.run_resume(options, typed, run_command)
    ),
    "plot": Command(comparing.Plot, comparing.run_plot),
    "compare": Command(comparing.Compare, comparing.run_compare),
    "report": Command(reporting.Report, reporting.run_report),
    "play": Command(playing_runs.Play, playing_runs.run_play),
}


def run_command(argv: Sequence[str] | None = None) -> None:
    """Run `jaxrl-align COMMAND --flags`.

    Args:
      argv: the arguments; None reads the program's own.

    Raises:
      SystemExit: with code 2 after a line for what the user can mend, 130 after Ctrl-C.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    name = typed[0] if typed else "--help"
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name == "--version":
        print(importlib.metadata.version("jaxrl-align"))
        return
    with user_errors():
        if name not in COMMANDS:
            raise ValueError(f"{name} is no command{suggest(name, COMMANDS)}")
    if name == "run":  # its flags are the experiment's
        launching.run_experiment(typed[1:])
        return
    command = COMMANDS[name]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with user_errors(resumes=has_field(command.options, "resume")):
        refuse_other_names(name, field_names(command.options), typed[1:])
        flags = with_config(name, command.options, typed[1:])
        options: Any = parse(command.options, flags, prog=f"jaxrl-align {name}")
        with meshed(options):
            command.run(options, typed)


def overview() -> str:
    """Return the commands, each with the first line of its help."""
    width = max(map(len, COMMANDS))
    lines = [
        f"  {name:{width}}  {(command.options.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    head = "usage: jaxrl-align COMMAND [flags]; jaxrl-align COMMAND --help lists a command's flags"
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    run_command()
