"""The commands of `jaxrl-align`, and how one is called."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jaxrl_align
from jaxrl_align.cli import convert, judge, learn, online, scoring, serve
from jaxrl_align.cli.config_files import suggest, with_config
from jaxrl_align.runtime.cli import has_field, parse, user_errors


class Command(NamedTuple):
    """A command: its flags, and what it does with them."""

    options: type
    """A frozen dataclass, whose docstring is the help."""
    run: Callable[[Any, Sequence[str]], None]
    """`(options, the whole command as it was typed)`."""


COMMANDS: dict[str, Command] = {
    "sft": Command(learn.SFT, learn.run_sft),
    "reward": Command(judge.Reward, judge.run_reward),
    **{method.name: Command(kind, learn.run_direct) for kind, method in learn.METHODS.items()},
    "ppo": Command(online.PPO, online.run_ppo),
    "grpo": Command(online.GRPO, online.run_groups),
    "rloo": Command(online.RLOO, online.run_groups),
    "generate": Command(serve.Generate, serve.run_generate),
    "chat": Command(serve.Chat, serve.run_chat),
    "score": Command(scoring.ScoreRows, scoring.run_score),
    "merge": Command(convert.Merge, convert.run_merge),
    "import": Command(convert.Import, convert.run_import),
}


def main(argv: Sequence[str] | None = None) -> None:
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
        print(jaxrl_align.__version__)
        return
    with user_errors():
        if name not in COMMANDS:
            raise ValueError(f"{name} is no command{suggest(name, COMMANDS)}")
    command = COMMANDS[name]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with user_errors(resumes=has_field(command.options, "resume")):
        flags = with_config(name, command.options, typed[1:])
        command.run(parse(command.options, flags, prog=f"jaxrl-align {name}"), typed)


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
    main()
