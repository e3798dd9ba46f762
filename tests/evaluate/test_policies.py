"""Policies in folders: what comes back is what was kept, lies are refused, play and films."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import actors, envs, evaluate, nets
from jaxrl_align.actors.normalisation import Moments, Normaliser
from jaxrl_align.cli import run_command
from jaxrl_align.envs.rollout import Episodes
from jaxrl_align.evaluate.policies import drawings, films, playing
from jaxrl_align.evaluate.policies.described import (
    build_net,
    describe_space,
    flatten_params,
    make_space,
    unflatten_params,
)
from jaxrl_align.losses import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian
from jaxrl_align.nets.recipes import write_recipe
from jaxrl_align.runtime import open_run
from jaxrl_align.runtime.folder import to_json

safetensors = pytest.importorskip("safetensors.numpy")
KEY = jax.random.key(3)


def many(space, *shape, dtype=jnp.float32):
    """Return an environment that shows zeros and takes actions of a space."""

    def step(key, state, action, params):
        obs = jnp.zeros(shape, dtype)
        return obs, state, jnp.float32(1), jnp.bool_(True), jnp.bool_(False), {"final_observation": obs}

    reset = lambda key, params: (jnp.zeros(shape, dtype), jnp.int32(0))
    return SimpleNamespace(reset=reset, step=step, action_space=lambda params: space), None


def start(net, *shape):
    """Return parameters, the output layers large, so that actions depend on what is seen."""
    params = net.init(KEY, jnp.zeros(shape))
    return jax.tree.map(lambda x: x + 0.4 * jax.random.normal(KEY, x.shape), params)


Q = {"hidden": (3,)}
NETS = {
    "policy": (nets.make_actor_critic_net(2, (3, 4), jax.nn.gelu), (4,), Categorical, "CartPole-v1"),
    "shared": (nets.make_actor_critic_net(2, (3,), shared=True), (4,), Categorical, "CartPole-v1"),
    "image": (
        nets.make_actor_critic_net(3, (3,), channels=2),
        (10, 10, 4),
        Categorical,
        "Breakout-MinAtar",
    ),
    "gaussian": (nets.make_gaussian_net((1,), (3,)), (3,), DiagonalGaussian, "Pendulum-v1"),
    "tanh": (nets.make_gaussian_net((1,), (3,)), (3,), TanhGaussian, "Pendulum-v1"),
    "choices": (
        nets.make_multi_discrete_net((2, 3), (3,)),
        (2,),
        MultiCategorical,
        many(envs.MultiDiscrete((2, 3)), 2),
    ),
    "values": (nets.make_q_net(2, **Q, duelling=True, noisy=True), (4,), Categorical, "CartPole-v1"),
    "atoms": (
        nets.make_q_net(2, **Q, support=nets.support_between(-1, 2, 3)),
        (4,),
        Categorical,
        "CartPole-v1",
    ),
    "quantiles": (nets.make_q_net(2, **Q, quantiles=3), (4,), Categorical, "CartPole-v1"),
    "pairs": (nets.make_state_action_net(2, (3,)), (4,), Categorical, "CartPole-v1"),
}


@pytest.mark.parametrize("name", NETS)
def test_what_comes_back_acts_as_what_was_kept(name, tmp_path):
    net, shape, kind, env = NETS[name]
    params = start(net, *shape)
    seen = Normaliser(Moments(jnp.ones(()), jnp.full(shape, 0.5), jnp.full(shape, 4.0)), None, None)
    seen = None if name in ("image", "values") else seen
    how = {"env": env, "distribution": kind, "normaliser": seen, "epsilon": 0.5}
    evaluate.save_policy(tmp_path / "p", net, params, **how, trained={"seed": 3})
    policy = evaluate.load_policy(tmp_path / "p")
    assert policy.trained == {"seed": 3} and policy.env == (env if isinstance(env, str) else None)
    assert policy.observation.shape == shape
    if isinstance(net, nets.QNet):
        pair = actors.epsilon_greedy(net, params), actors.epsilon_greedy(net, params, 0.5)
    else:
        pair = actors.greedy(net, params, kind), actors.sampled(net, params, kind)
    to_env = envs.to_environment(kind, policy.action) if kind in (DiagonalGaussian, TanhGaussian) else None

    def act(policies, keys, obs):
        return [jax.vmap(policy)(keys, obs) for policy in policies]

    @jax.jit
    def both(keys, obs):
        theirs = act([actors.normalised(one, seen) for one in pair], keys, obs)
        theirs = theirs if to_env is None else jax.vmap(jax.vmap(to_env))(jnp.array(theirs))
        return act([policy.greedy, policy.sampled], keys, obs), theirs

    ours, theirs = both(jax.random.split(KEY, 32), jax.random.normal(KEY, (32, *shape)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert len(np.unique(ours[1])) > 1 and not np.array_equal(*ours)


@pytest.fixture
def kept(tmp_path):
    """A folder of a small policy of CartPole, normalised."""
    net = nets.make_actor_critic_net(2, (3,))
    seen = Normaliser(Moments(jnp.ones(()), jnp.zeros(4), jnp.ones(4)), None, None)
    evaluate.save_policy(tmp_path / "kept", net, start(net, 4), env="CartPole-v1", normaliser=seen)
    return tmp_path / "kept"


def change(folder, *path, **changes):
    """Change entries of policy.json, below a path of names."""
    said = json.loads((folder / "policy.json").read_text())
    inner = said
    for name in path:
        inner = inner[name]
    for name, value in changes.items():
        inner[name] = value
        if value is None:
            del inner[name]
    (folder / "policy.json").write_text(json.dumps(said))


LIES = {
    "another version": ((), {"version": 2}, "version must be 1; got 2"),
    "no net": ((), {"net": None}, "net must be there"),
    "no function": (("net",), {"function": "eval"}, "net must be of make_actor_critic_net, .*; got 'eval'"),
    "another argument": (("net", "arguments"), {"wide": 3}, "takes num_actions, hidden.*; got .*wide"),
    "a text for a number": (("net", "arguments"), {"num_actions": "2"}, "num_actions must be of type int"),
    "an unknown activation": (("net", "arguments"), {"activation": "exec"}, "activation must be one of tanh"),
    "more units": (
        ("net", "arguments"),
        {"hidden": [3, 3]},
        "holds 'params/policy_1/bias' of shape nothing, but .* describes",
    ),
    "units without end": (("net", "arguments"), {"hidden": [2**30]}, "hidden is .* larger than any array"),
    "layers without end": (("net", "arguments"), {"hidden": [3] * 33}, "at most 32 layers; got 33"),
    "more actions": (
        ("net", "arguments"),
        {"num_actions": 3},
        r"outputs of shape \(2,\) for its actions; got",
    ),
    "another kind": ((), {"kind": "values"}, "kind values does not go with a net of make_actor_critic_net"),
    "a kind that is none": ((), {"kind": "Any"}, "kind must be of Categorical"),
    "a kind that does not fit": ((), {"kind": "TanhGaussian"}, "TanhGaussian does not fit"),
    "another epsilon": ((), {"epsilon": 2.0}, "epsilon must be at most 1; got 2.0"),
    "other observations": (("observation",), {"shape": [5]}, "holds"),
    "an image": (("net", "arguments"), {"channels": 2}, "cannot read observations of shape"),
    "too many dimensions": (("observation",), {"shape": [1] * 9}, "at most 8 dimensions; got 9"),
    "objects": (("observation",), {"dtype": "O"}, "dtype must be of float32"),
    "no actions": (("action",), {"n": None}, "action must have n, as a Discrete has"),
    "a box": (
        (),
        {"action": {"kind": "Box", "shape": [2], "low": [0.0], "high": [1.0], "dtype": "int32"}},
        "action must have a low and a high for each number",
    ),
    "an upside-down box": (
        (),
        {"action": {"kind": "Box", "shape": [1], "low": [1.0], "high": [0.0], "dtype": "float32"}},
        "no low above its high",
    ),
    "another space": ((), {"action": {"kind": "Dict"}}, "'kind' must be one of Discrete"),
    "no moments": ((), {"normalised": False}, "holds 'observation/mean' .*describes nothing"),
    "other numbers": ((), {"sha256": "0" * 64}, "policy.safetensors is damaged, or of another policy"),
    "an environment that is a number": ((), {"env": 3}, "env must be of type str"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_in_a_line(name, kept):
    path, changes, says = LIES[name]
    change(kept, *path, **changes)
    with pytest.raises(ValueError, match=says) as caught:
        evaluate.load_policy(kept)
    assert "\n" not in str(caught.value) and str(kept) in str(caught.value)


def test_damage_is_refused(kept, tmp_path):
    file = kept / "policy.safetensors"
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:-4] + b"\0\0\0\0", b"", b"\x80\x04pickle"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"policy\.safetensors is (damaged|truncated)"):
            evaluate.load_policy(kept)
    file.unlink()
    with pytest.raises(ValueError, match="holds no policy.safetensors"):
        evaluate.load_policy(kept)
    with pytest.raises(ValueError, match=r"policy\.json is missing; give the folder of a kept policy"):
        evaluate.load_policy(tmp_path)


def test_numbers_that_are_none_are_refused(kept):
    file = kept / "policy.safetensors"
    numbers = safetensors.load_file(file)
    for bad, says in ((np.nan, "NaN"), (-1.0, "negative variance")):
        safetensors.save_file(numbers | {"observation/variance": np.full(4, bad, np.float32)}, file)
        change(kept, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        with pytest.raises(ValueError, match=says):
            evaluate.load_policy(kept)


def test_what_could_not_be_opened_is_not_written(tmp_path):
    net, box = nets.make_actor_critic_net(2, (3,)), many(envs.spaces.Box(-1.0, 1.0, (2,)), 4)
    params, two = start(net, 4), envs.spaces.Discrete(2)
    wide = nets.make_gaussian_net((2,), (3,))
    recurrent = nets.with_memory(net, 3)
    deep = nets.make_actor_critic_net(2, (3,) * 33)
    seen = lambda variance: Normaliser(Moments(jnp.ones(()), jnp.zeros(4), variance), None, None)
    for other, given, how, says in (
        (
            wide,
            start(wide, 4),
            {"env": box},
            "Categorical does not fit the action space Box; .*DiagonalGaussian",
        ),
        (recurrent, params, {}, "without memory .*; got a RecurrentNet of another make"),
        (deep, params, {}, "at most 32 layers; got 33"),
        (net, jax.tree.map(lambda x: x * jnp.nan, params), {}, "params/.* must be finite; it holds NaN"),
        (net, jax.tree.map(lambda x: jnp.stack([x] * 3), params), {}, r"got \(3, .*members give one"),
        (net, params, {"epsilon": 2.0}, "epsilon must be at most 1"),
        (net, params, {"normaliser": seen(jnp.full(4, jnp.nan))}, "variance' must be finite"),
        (net, params, {"normaliser": seen(-jnp.ones(4))}, "observation/variance must be at least 0"),
        *(
            (
                net,
                params,
                {"env": many(two, 4, dtype=kind)},
                f"dtype must be of float32.*; got '{kind.__name__}'",
            )
            for kind in (jnp.int8, jnp.uint16, jnp.float16, jnp.bfloat16)
        ),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.save_policy(tmp_path / "p", other, given, **{"env": "CartPole-v1"} | how)
        assert not (tmp_path / "p").exists()


def test_a_net_that_overflows_computes_what_its_recipe_does(tmp_path):
    net = nets.make_q_net(2, (3,))
    params = jax.tree.map(lambda x: 1e38 * jnp.sign(x), start(net, 4))
    assert np.isnan(net.apply(params, jnp.full(4, 1e3))).any()
    evaluate.save_policy(tmp_path / "p", net, params, env="CartPole-v1")


def test_only_nets_that_can_be_built_again_are_kept(tmp_path):
    net = nets.make_actor_critic_net(2, (3,))
    params = start(net, 4)
    changed = net._replace(apply=lambda params, obs: jax.tree.map(lambda x: x + 1, net.apply(params, obs)))
    for other, says in (
        (net._replace(recipe=None), "a net that a function of `nets` has built"),
        (nets.make_actor_critic_net(2, (3,), lambda x: x), "an activation of nets.recipes"),
        (nets.flatten_observations(net), "has built"),
        (changed, "computes something else than its recipe"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.save_policy(tmp_path / "p", other, params, env="CartPole-v1")
    parts = many(envs.MultiDiscrete((2,)), 2)[0]
    parts.reset = lambda key, params: ({"a": jnp.zeros(2)}, jnp.int32(0))
    step = parts.step
    parts.step = lambda *a: ({"a": jnp.zeros(2)}, *step(*a)[1:5], {"final_observation": {"a": jnp.zeros(2)}})
    with pytest.raises(ValueError, match="observations that are one array; got one of several parts"):
        evaluate.save_policy(tmp_path / "p", net, params, env=(parts, None))
    assert not (tmp_path / "p").exists()


def test_recipes_build_the_same_net_from_json():
    for net, shape, *_ in NETS.values():
        said = to_json({"function": net.recipe.function, "arguments": dict(net.recipe.arguments)})
        again = build_net(said)
        assert again.recipe == net.recipe
        shapes = [jax.eval_shape(one.init, KEY, jnp.zeros(shape)) for one in (net, again)]
        assert shapes[0] == shapes[1]
    assert jax.jit(lambda x: write_recipe("f", support=x) is None)(jnp.ones(2))
    tree = {"a": {"b": {"c": 1}}, "d": 2}
    assert flatten_params(tree) == {"a/b/c": 1, "d": 2} and unflatten_params(flatten_params(tree)) == tree


def test_spaces_come_back():
    spaces = (
        envs.spaces.Discrete(3),
        envs.MultiDiscrete((2, 3)),
        envs.spaces.Box(
            np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32), (2,), np.float32
        ),
        envs.spaces.Box(-np.inf, np.inf, (2, 1), np.float32),
        envs.spaces.Box(0, 9, (1,), np.int32),
    )
    for space in spaces:
        said = json.loads(json.dumps(describe_space(space)))
        assert describe_space(make_space(said)) == said
    assert make_space(describe_space(spaces[2])).high.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="of a Discrete, MultiDiscrete or Box; got SimpleNamespace"):
        describe_space(SimpleNamespace())


def by_bias(level):
    """Return parameters of a Q-net that always goes right by `level` > 0, left by < 0."""
    params = jax.tree.map(jnp.zeros_like, nets.make_q_net(2, (1,)).init(KEY, jnp.zeros(4)))
    params["advantage"]["Dense_0"]["bias"] = jnp.array([0.0, level])
    return params


def test_the_best_member_is_kept_and_played(tmp_path, capsys, monkeypatch):
    net, values = nets.make_q_net(2, (1,)), {-1.0: 3.0, 1.0: 7.0, 2.0: 5.0}
    stack = lambda *levels: jax.tree.map(lambda *x: jnp.stack(x), *map(by_bias, levels))

    def value(env, policy, key, **how):
        assert how["num_episodes"] == 4 and how["max_steps"] == 501
        level = policy(key, jnp.zeros(4))  # 1 where it goes right
        return Episodes(jnp.where(level == 1, 7.0, 3.0)[None], jnp.ones(1), jnp.ones(1, bool))

    monkeypatch.setattr(playing, "evaluate_policy", value)
    with pytest.raises(TypeError, match="must be a RunFolder, as runtime.open_run gives it; got str"):
        evaluate.keep_policy("run", net, None, env="CartPole-v1")
    folder = open_run(tmp_path / "run", {"seed": 1})
    state = lambda step, *levels: SimpleNamespace(
        params=stack(*levels), env_state=None, step=jnp.full(2, step, jnp.int32)
    )
    chosen = evaluate.keep_policy(folder, net, state(9, -1.0, 1.0), env="CartPole-v1", episodes=4)
    assert chosen == (1, 9, 7.0) and values
    kept = evaluate.load_policy(tmp_path / "run")
    assert kept.greedy(KEY, jnp.zeros(4)) == 1 and kept.trained["config"] == {"seed": 1}
    assert "policy of member 1 at step 9, the best of 2 by the mean return of 4 greedy episodes, 7.0" in (
        capsys.readouterr().out
    )
    # The checkpoint that --keep-best has kept is the better one.
    monkeypatch.setattr(playing, "read_best", lambda folder: {"step": 4})
    monkeypatch.setattr(playing.checkpoint, "restore", lambda *a, step: (state(step, 1.0, -1.0), step))
    assert evaluate.keep_policy(folder, net, state(9, -1.0, -1.0), env="CartPole-v1", episodes=4) == (0, 4, 7)
    assert evaluate.load_policy(tmp_path / "run").trained["step"] == 4


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that keeps a policy of CartPole which always goes right."""
    net = nets.make_q_net(2, (1,))
    evaluate.save_policy(tmp_path / "run" / "policy", net, by_bias(1.0), env="CartPole-v1")
    monkeypatch.delenv("JAXRL_ALIGN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_play_prints_returns_and_writes_a_film(run, capsys):
    image = pytest.importorskip("PIL.Image")
    run_command(["play", "run", "--episodes", "20", "--film", "films/one.gif"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("run/policy: CartPole-v1, greedy: return 9.") and first.endswith(
        "steps; from 8 to 11)"
    )
    film, steps = image.open("films/one.gif"), int(second.split(" of ")[1].split()[0])
    assert film.n_frames == steps // 2 + 1 and film.size == (drawings.WIDTH, drawings.HEIGHT)
    assert second.endswith(f"returns {steps}")
    run_command(["play", "run/policy", "--episodes", "5", "--max-steps", "6", "--sample"])
    out = capsys.readouterr().out
    assert "sampled: return 6 [6, 6]" in out and out.endswith("; 5 were cut\n")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["nowhere"], "error: nowhere holds no policy"),
        (["run", "--episodes", "0"], "--episodes must be at least 1"),
        (["run", "--env", "Pendulum-v1"], "Pendulum shows shape (3,) and takes Box"),
        (["run", "--env", "Cartpole"], "did you mean CartPole-v1"),
        (["run", "--film", "a.mp4"], "a film must be a .gif; got a.mp4"),
    ],
)
def test_what_cannot_be_played_is_refused(run, capsys, flags, says):
    with pytest.raises(SystemExit) as stop:
        run_command(["play", *flags])
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_several_policies_are_played_and_not_filmed(run, capsys):
    shutil.copytree(run, run / "stage")
    run_command(["play", "run", "--episodes", "2", "--max-steps", "3"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "run/policy",
        "run/stage/policy",
    ]
    with pytest.raises(SystemExit):
        run_command(["play", "run", "--film", "a.gif"])
    assert "a film is of one policy; run holds 2: give one of run/policy" in capsys.readouterr().err


def test_a_nameless_environment_must_be_given(tmp_path):
    net, place = nets.make_multi_discrete_net((2, 3), (3,)), many(envs.MultiDiscrete((2, 3)), 2)
    how = {"env": place, "distribution": MultiCategorical}
    evaluate.save_policy(tmp_path, net, start(net, 2), **how)
    policy = evaluate.load_policy(tmp_path)
    with pytest.raises(ValueError, match="without a name; say which by env"):
        evaluate.play_policy(policy, KEY)
    with pytest.raises(ValueError, match="no max_steps_in_episode; say the longest episode by max_steps"):
        evaluate.play_policy(policy, KEY, env=place)
    assert evaluate.play_policy(policy, KEY, env=place, episodes=2, max_steps=1).episode_return.sum() == 2
    with pytest.raises(ValueError, match="there are films of CartPole.*got SimpleNamespace"):
        evaluate.film_policy(policy, tmp_path / "a.gif", KEY, env=place, max_steps=1)


PLACES = {
    "CartPole-v1": ("x", 0.0, 1.5),
    "Acrobot-v1": ("joint_angle2", 0.0, 1.5),
    "MountainCar-v0": ("position", -0.5, 0.3),
    "MountainCarContinuous-v0": ("position", -0.5, 0.3),
    "Pendulum-v1": ("theta", 0.0, 1.5),
}


@pytest.mark.parametrize("name", PLACES)
def test_pictures_follow_the_state(name):
    pytest.importorskip("PIL")
    environment, params = envs.make_environment(name)
    obs, state = environment.reset(KEY, params)
    camera, (field, *places) = drawings.find_camera(environment, obs.shape), PLACES[name]
    seen = [np.asarray(camera.draw(state.replace(**{field: x}), obs, params)) for x in places]
    assert {x.shape for x in seen} == {(drawings.HEIGHT, drawings.WIDTH, 3)}
    moved = (np.abs(seen[0].astype(int) - seen[1]).max(2) > 40).sum()
    assert 200 < moved < 20_000
    colours = [(0, 114, 178), *([(34, 34, 34)] if field == "x" else [])]
    for colour in colours if field in ("x", "position") else ():  # what moves is drawn further right
        left, right = (np.argwhere((x == colour).all(2))[:, 1].mean() for x in seen)
        assert left + 50 < right


def test_cells_have_their_channels_colours():
    pytest.importorskip("PIL")
    obs = np.zeros((10, 10, 2))
    obs[9, 3, 1] = 1
    picture = np.asarray(drawings.draw_cells(None, obs, None))
    assert picture.shape == (200, 200, 3) and tuple(picture[190, 70]) == (0xD5, 0x5E, 0x00)
    assert (picture[:180] == 24).all()


def test_play_draws_the_actions_where_it_is_asked_to(tmp_path):
    net = nets.make_q_net(2, (1,))
    evaluate.save_policy(tmp_path, net, by_bias(1.0), env="CartPole-v1", epsilon=1.0)
    policy = evaluate.load_policy(tmp_path)
    how = {"episodes": 20, "max_steps": 60}
    greedy, sampled = (evaluate.play_policy(policy, KEY, **how, sample=x) for x in (False, True))
    assert greedy.episode_return.max() < 13 < sampled.episode_return.max()


def test_a_film_shows_one_episode(run):
    place = playing.find_environment(evaluate.load_policy(run))
    states, obs, returns = films._record(place, evaluate.load_policy(run).greedy, KEY, 50)
    assert 7 < len(obs) < 12 and returns.tolist() == list(range(1, len(obs) + 1))
    np.testing.assert_allclose(obs[:, 0], states.x, rtol=1e-5)
    assert (np.diff(states.time) == 1).all()


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with jax.numpy_rank_promotion("allow"):  # users run it without this suite's strictness
        exec(compile(code, "policies.md", "exec"), {})
    name, action, value = capsys.readouterr().out.split()
    assert name == "CartPole-v1" and action in "01" and float(value) >= 8
