"""Other libraries, each measured in its own interpreter, a round at a time, in turn with ours.

A benchmark starts `PYTHON peers.py NAME ARGUMENTS`, waits for "ready", and asks for a round with an empty
line; the answer is a rate a second. Only the standard library is imported here, because the interpreter
that runs this file has the peer and not this library.
"""

import json
import subprocess
import sys
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
    "lm_eval_choices": "pip install lm-eval==0.4.13 transformers torch accelerate",
    "transformers_choices": "pip install transformers torch",
    "transformers_generate": "pip install transformers torch",
    "trl_sft": "pip install trl torch",
    "trl_reward": "pip install trl torch peft",
    "trl_dpo": "pip install trl torch",
    "trl_grpo": "pip install trl torch peft",
    "trl_ppo": "pip install trl==1.12.0 torch",
    "peft_lora": "pip install peft==0.21.2 transformers torch",
    "purejaxrl": "pip install gymnax==0.0.9 distrax, and give the folder of its ppo.py",
}


def serve(name: str, arguments: dict[str, Any]) -> None:
    """Answer every line with a round's rate."""
    import agent_peers
    import text_peers
    import trl_peers

    make = next(vars(room)[name] for room in (agent_peers, text_peers, trl_peers) if name in vars(room))
    # This folder leads the path, and a module here may bear a peer's name.
    sys.path = sys.path[1:]
    measure = make(**arguments)
    print("ready", getattr(measure, "compile_seconds", "nan"), flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
