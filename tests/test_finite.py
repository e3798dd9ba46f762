"""Numbers that must be finite, in a loop's metrics or in what `train` returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import rl
from jaxrl_align.actors import make_actor
from jaxrl_align.finite import check_finite, must_be_finite
from jaxrl_align.learner import make_gradient_learner, train
from jaxrl_align.nets import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams
from jaxrl_align.runtime.loop import run
from tests.environments import Recall

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("loss", "value_loss", "loss/policy_avg", "critic/loss"), True),
        (("kl", "objective/kl", "policy/approxkl_avg", "approx_kl"), True),
        (("reward", "score", "objective/scores", "objective/rlhf_reward", "rewards/length/mean"), True),
        (("episode_return_last100", "rewards/chosen", "rewards/margins", "kl_coef", "entropy"), False),
        (("reward_std", "lossless", "grad_norm", "objective/kl_coef", "rewards/length/std"), False),
    ],
)
def test_which_metrics_must_be_finite(names, expected):
    assert [must_be_finite(name) for name in names] == [expected] * len(names)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": [1.0, NAN]}, "loss is not finite at step 11; lower the learning rate"),
        (
            {"loss": [1.0, NAN], "objective/kl": [1.0, INF]},
            "objective/kl is not finite at step 11; lower the learning rate, or hold the policy closer",
        ),
        (
            {"loss": [1.0, NAN], "a/kl": [1.0, NAN], "reward": [1.0, -INF]},
            "reward is not finite at step 11; mend the reward model or the reward function, not the learning "
            "rate",
        ),
        (  # what came first is what is named, whatever follows from what within a step
            {"loss": [NAN, NAN], "reward": [1.0, NAN]},
            "loss is not finite at step 10; lower the learning rate",
        ),
        (
            {"loss": [[1.0, 1.0, 1.0], [INF, 1.0, NAN]]},
            "loss is not finite at step 11 in members [0, 2] of 3; lower the learning rate",
        ),
    ],
)
def test_the_first_term_is_named(metrics, message):
    with pytest.raises(FloatingPointError) as error:
        check_finite(None, {name: np.array(x) for name, x in metrics.items()}, first_step=10)
    assert str(error.value) == message


def test_what_may_be_nan_is_passed_over():
    check_finite(None, {"episode_return_last100": np.array([NAN]), "loss": np.array([0.0])})
    check_finite({"x": jnp.array([INF]), "n": jnp.array(3)}, {})
    check_finite(None, {})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(NAN, "params/w is nan after 3 steps in members [1] of 2"), (INF, "params/w is infinite after 3 steps")],
)
def test_leaves_are_named_with_their_members(wrong, said):
    learner = make_gradient_learner(lambda key: {"w": jnp.ones(3)}, lambda p, *_: (jnp.sum(p["w"]), {}))
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(learner.init, (0, None))(keys, PPOHParams(value_clip=INF))
    state = state._replace(params={"w": state.params["w"].at[1, 2].set(wrong)})
    with pytest.raises(FloatingPointError) as error:
        check_finite(state, {"loss": np.ones((3, 2))})
    assert str(error.value).startswith(said) and "although the loss is finite" in str(error.value)


class Spoilt(Recall):
    """Pays a nan at the end of its episodes."""

    def step(self, key, state, action, params):
        obs, after, reward, terminated, *rest = super().step(key, state, action, params)
        return obs, after, jnp.where(terminated, jnp.nan, reward), terminated, *rest


def test_what_vmap_left_members_first_is_read_so():
    learner = make_gradient_learner(lambda key: {"w": jnp.ones(3)}, lambda p, *_: (jnp.sum(p["w"]), {}))
    state = jax.vmap(learner.init, (0, None))(jax.random.split(jax.random.key(0), 2), PPOHParams())
    loss = np.ones((2, 5))
    loss[1, 3] = NAN
    for metrics in (loss, loss.T):
        with pytest.raises(FloatingPointError, match=r"at step 3 in members \[1\] of 2;"):
            check_finite(state, {"loss": metrics})


def test_a_nan_from_the_environment_is_told_from_a_learning_rate():
    actor = make_actor((Spoilt(), None), make_actor_critic_net(2), num_envs=2, num_steps=8)
    learner = rl.make_actor_critic(actor, segment_length=1, epochs=1, minibatches=1, total_steps=4)
    message = r"is not finite at step 0; the environment's rewards are not finite either: mend them, not the"
    with pytest.raises(FloatingPointError, match=message):
        run(learner.step, learner.init(jax.random.key(0), PPOHParams()), 4, progress=False)
    keys = jax.random.split(jax.random.key(0), 2)
    state, metrics = jax.jit(jax.vmap(train(learner, 4), (0, None), (0, 1)))(keys, PPOHParams())
    with pytest.raises(
        FloatingPointError, match=r"at step 0 in members \[0, 1\] of 2; the environment's rewards"
    ):
        check_finite(state, metrics)
    assert jax.tree.leaves(metrics)[0].shape[:2] == (4, 2)
