"""The public surface is typed: a checker finds a user's typo, and `help` shows a signature one can read."""

import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl_align import losses

ROOT = Path(__file__).parent.parent

RIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jaxrl_align import actors, align, envs, losses, nets, rl

actor = actors.make_actor("CartPole-v1", nets.make_actor_critic_net(2), num_envs=4, num_steps=8)
learner = rl.make_actor_critic(actor, segment_length=1)
hparams = rl.PPOHParams(learning_rate=1e-3, clip=jnp.linspace(0.1, 0.3, 4))
advantage = losses.gae(np.ones(3), np.ones(3), np.ones(3), np.zeros(3), np.zeros(3))
advantage.at[0].set(1.0)
part = nets.select(learner.init(jax.random.key(0), hparams).params, "*bias")
"""
WRONG = {
    "rl.PPOHParams(learning_rte=1e-3)": "call-arg",
    'rl.PPOHParams(clip="oops")': "arg-type",
    'align.RLHFHParams(kl_coef="0.1")': "arg-type",
    "losses.gea(1.0, 1.0, 1.0, 1.0, 1.0)": "attr-defined",
    'losses.clipped_surrogate(advantage, advantage, advantage, clip="0.2")': "arg-type",
    'actors.make_actor("CartPole-v1", 2, num_envs=4, num_steps=8)': "arg-type",
    "rl.make_actor_critic(actor, epoch=4)": "call-arg",
}


@pytest.mark.slow
def test_a_type_checker_finds_a_users_typo(tmp_path):
    lines = [*RIGHT.splitlines(), *WRONG]
    script = tmp_path / "script.py"
    script.write_text("\n".join(lines) + "\n")
    check = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    found = subprocess.run(check, cwd=ROOT, capture_output=True, text=True).stdout
    errors = [line for line in found.splitlines() if "error:" in line]
    start = len(RIGHT.splitlines())
    expected = [(start + i + 1, kind) for i, kind in enumerate(WRONG.values())]
    got = [(int(line.split(":")[1]), line.rsplit("[", 1)[-1].rstrip("]")) for line in errors]
    assert got == expected, found


@pytest.mark.parametrize("name", ["gae", "clipped_surrogate", "td_target", "dpo"])
def test_help_opens_with_a_readable_signature(name):
    page = pydoc.plain(pydoc.render_doc(getattr(losses, name)))
    signature = page.split("\n")[2]
    assert signature.startswith(f"{name}(") and "Union" not in signature and len(signature) < 200, signature
