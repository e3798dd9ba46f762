import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.nets import init_houlsby, init_ia3, init_lora, merge, overlay, select
from jaxrl_align.nets.kinds import KINDS
from tests.tiny import LM, PARAMS, bits, disturb

LAYERS = {"query", "key", "value", "attention_out", "up", "down"}
TOKENS = jnp.array([0, 0, 5, 3, 9, 17])
MASK = jnp.array([0.0, 0, 1, 1, 1, 1])
FRESH, CONSTANTS = jax.jit(lambda key: init_lora(key, PARAMS, rank=3, alpha=6))(jax.random.key(2))
BASE = overlay(PARAMS, CONSTANTS)
TRAINED = jax.jit(lambda key: disturb(FRESH, key, 0.3))(jax.random.key(3))
merge_all = jax.jit(merge)


@jax.jit
def forward(params, part=None):
    params = params if part is None else overlay(params, part)
    return LM.logits(params, LM.encode(params, TOKENS, MASK)[0])


def test_a_fresh_adapter_is_the_identity():
    np.testing.assert_array_equal(forward(BASE, FRESH), forward(PARAMS))


def test_constants_alone_change_nothing():
    """RLHF's reference is the base without the part, to the last bit."""
    np.testing.assert_array_equal(forward(BASE), forward(PARAMS))
    assert bits(merge_all(BASE)) == bits(PARAMS)


def test_merged_equals_unmerged():
    """Lecture D5."""
    adapted = forward(BASE, TRAINED)
    assert jnp.abs(adapted - forward(PARAMS)).max() > 0.1, "the adapter must do something"
    merged = merge_all(overlay(BASE, TRAINED))
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(forward(merged), adapted, atol=1e-5)


def test_an_adapter_works_through_the_cache():
    step, positions = jax.jit(LM.encode), jnp.array([0, 0, 0, 1, 2, 3])
    params = overlay(BASE, TRAINED)
    full = step(params, TOKENS, MASK)[0]
    hidden, cache = step(params, TOKENS[:3], MASK, LM.init_cache(6), 0, positions[:3])
    for i in range(3, 6):
        hidden, cache = step(params, TOKENS[i : i + 1], MASK, cache, i, positions[i : i + 1])
        np.testing.assert_allclose(hidden[0], full[i], atol=1e-5)


def test_every_change_of_weight_has_at_most_the_adapters_rank():
    merged = jax.tree.map(np.asarray, merge_all(overlay(BASE, TRAINED)))
    for name in LAYERS:
        delta = merged["layers"][name]["kernel"] - PARAMS["layers"][name]["kernel"]
        for layer, kernel in zip(range(2), delta, strict=True):
            singular = np.linalg.svd(kernel, compute_uv=False)
            assert singular[2] > 0.01 and singular[3] < 1e-5 * singular[0], (name, layer)


def test_merging_by_hand():
    base = {"w": {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.array([1.0, 2.0])}}
    constants = {"w": {"lora": {"scale": jnp.array(0.5)}}}
    part = {"w": {"lora": {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0, 4.0]])}}}
    merged = merge(overlay(overlay(base, constants), part))
    np.testing.assert_array_equal(merged["w"]["kernel"], [[2.5, 2.0], [3.0, 5.0]])
    np.testing.assert_array_equal(merged["w"]["bias"], base["w"]["bias"])
    assert set(merged["w"]) == {"kernel", "bias"}


def test_merging_leaves_all_but_the_targets_alone():
    part, constants = init_lora(jax.random.key(0), PARAMS, rank=1, targets="*query")
    before = bits(PARAMS)
    merged = merge(overlay(overlay(PARAMS, constants), disturb(part, jax.random.key(1), 0.3)))
    assert bits(PARAMS) == before
    moved = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), PARAMS, merged)
    )
    assert [jax.tree_util.keystr(path) for path, changed in moved if changed] == [
        "['layers']['query']['kernel']"
    ]


def test_the_lectures_example_trains_14_percent_of_the_parameters():
    """Lecture D6: 512 x 64 at rank 8 is 512 * 8 + 8 * 64 = 4,608 instead of 32,768, 85.94% fewer."""
    part = init_lora(jax.random.key(0), {"w": {"kernel": jnp.zeros((512, 64))}}, rank=8, targets="w").part
    assert part["w"]["lora"]["a"].shape == (512, 8) and part["w"]["lora"]["b"].shape == (8, 64)
    count = sum(x.size for x in jax.tree.leaves(part))
    assert count == 4608
    assert round(100 * (1 - count / (512 * 64)), 2) == 85.94


def test_an_adapter_starts_uniform_within_the_bound_and_zero():
    layers = jax.jit(lambda key: init_lora(key, PARAMS, rank=8).part)(jax.random.key(0))["layers"]
    assert set(layers) == LAYERS
    assert layers["query"]["lora"]["a"].shape == (2, 16, 8)
    assert layers["down"]["lora"]["a"].shape == (2, 64, 8)
    for name, layer in layers.items():
        bound = layer["lora"]["a"].shape[1] ** -0.5
        assert 0.9 * bound < jnp.abs(layer["lora"]["a"]).max() <= bound, name
        assert not layer["lora"]["b"].any()
    assert not np.array_equal(layers["query"]["lora"]["a"], layers["key"]["lora"]["a"])


def test_gradients_flow_to_the_adapter_and_from_the_first_step_on():
    gradient = jax.jit(jax.grad(lambda part: jnp.sum(forward(BASE, part)[2:] ** 2)))
    first, later = gradient(FRESH)["layers"], gradient(TRAINED)["layers"]
    assert jax.tree.structure(first) == jax.tree.structure(FRESH["layers"]), "constants are not trained"
    for name in LAYERS:
        # B = 0 keeps A still at first; a key's bias shifts no attention, but its weights do.
        assert not first[name]["lora"]["a"].any() and first[name]["lora"]["b"].any(), name
        assert later[name]["lora"]["a"].any() and later[name]["lora"]["b"].any(), name


def test_the_scale_multiplies_the_adapter():
    halve = lambda path, x: 0.5 * x if path[-1].key == "scale" else x
    double = lambda path, x: 2.0 * x if path[-1].key == "b" else x
    constants = jax.tree_util.tree_map_with_path(halve, CONSTANTS)
    part = jax.tree_util.tree_map_with_path(double, TRAINED)
    np.testing.assert_allclose(forward(overlay(PARAMS, constants), part), forward(BASE, TRAINED), atol=1e-5)


STARTS = {
    "rslora": lambda key, base: init_lora(key, base, rank=4, alpha=3.0, rslora=True),
    "dora": lambda key, base: init_lora(key, base, rank=3, alpha=6, dora=True, targets=["*query", "*down"]),
    "ia3": lambda key, base: init_ia3(base),
    "houlsby": lambda key, base: init_houlsby(key, base, width=5),
}


@functools.cache
def started(name):
    """Return a way's base and part, as it starts and as training may leave it."""
    part, constants = jax.jit(lambda key: STARTS[name](key, PARAMS))(jax.random.key(5))
    return overlay(PARAMS, constants), part, disturb(part, jax.random.key(6), 0.3)


@pytest.mark.parametrize("name", STARTS)
def test_every_way_starts_as_the_base_and_merges(name):
    base, fresh, trained = started(name)
    plain = forward(PARAMS)
    # DoRA divides a norm by itself, which two programs may round apart.
    np.testing.assert_allclose(forward(base, fresh), plain, rtol=0, atol=2e-5 if name == "dora" else 0)
    adapted = forward(base, trained)
    assert jnp.abs(adapted - plain).max() > 0.1
    if name == "houlsby":
        return
    merged = merge_all(overlay(base, trained))
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(forward(merged), adapted, atol=2e-5)


def test_the_scale_is_alpha_by_rank_or_by_its_root():
    scale = lambda **how: init_lora(jax.random.key(0), PARAMS, rank=4, targets="*up", **how)[1]["layers"][
        "up"
    ]
    for how, expected in (({}, 1.0), ({"alpha": 3}, 0.75), ({"alpha": 3, "rslora": True}, 1.5)):
        np.testing.assert_array_equal(scale(**how)["lora"]["scale"], [expected, expected])


def test_dora_and_ia3_by_hand():
    """Columns (3, 4) and (0, 2) keep their directions at B = 0: magnitudes 10 and 1 double and halve them."""
    layer = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.array([1.0, -1.0])}
    part = init_lora(jax.random.key(0), {"w": layer}, rank=1, dora=True).part["w"]["dora"]
    np.testing.assert_array_equal(part["magnitude"], [5, 2])
    own = {"a": jnp.array([[1.0], [0.0]]), "b": jnp.zeros((1, 2)), "magnitude": jnp.array([10.0, 1.0])}
    own["scale"] = jnp.array(2.0)
    x = jnp.array([1.0, 1.0])
    y = x @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(KINDS["dora"].apply(own, x, y, layer), [15, 0], atol=1e-6)
    own["b"] = jnp.array([[-1.5, 0.0]])  # the first column becomes (0, 4), of norm 4: 10 / 4 * 4 + 1
    np.testing.assert_allclose(KINDS["dora"].apply(own, x, y, layer), [11, 0], atol=1e-6)
    np.testing.assert_allclose(KINDS["dora"].merge(own, layer)["kernel"], [[0, 0], [10, 1]], atol=1e-6)
    vector = {"vector": jnp.array([2.0, 3.0])}
    np.testing.assert_array_equal(KINDS["ia3"].apply(vector, x, y, layer), [16, 3])
    merged = KINDS["ia3"].merge(vector, layer)
    np.testing.assert_array_equal(merged["kernel"], [[6, 0], [8, 6]])
    np.testing.assert_array_equal(merged["bias"], [2, -3])
    np.testing.assert_array_equal(KINDS["ia3_input"].read(vector, x), [2, 3])
    np.testing.assert_array_equal(KINDS["ia3_input"].merge(vector, layer)["kernel"], [[6, 0], [12, 6]])


def test_a_bottleneck_by_hand():
    own = {"down": jnp.array([[1.0], [1.0]]), "down_bias": jnp.array([-3.0])}
    own |= {"up": jnp.array([[2.0, 0.0]]), "up_bias": jnp.array([0.0, 10.0])}
    y = KINDS["houlsby"].apply(own, jnp.zeros(1), jnp.array([5.0, 8.0]), {})
    np.testing.assert_allclose(y, [5 + 2 * jax.nn.gelu(10.0), 18], rtol=1e-6)
    part = init_houlsby(jax.random.key(0), PARAMS, width=5).part["layers"]
    assert set(part) == {"attention_out", "down"}
    assert {name: x.shape for name, x in part["down"]["houlsby"].items()} == {
        "down": (2, 16, 5),
        "down_bias": (2, 5),
        "up": (2, 5, 16),
        "up_bias": (2, 16),
    }


def test_doras_norms_are_constants_to_its_gradient():
    """Of `m / norm(v) * v` with a fixed norm, the gradient in v is `m / norm` times the one from above."""
    layer, x = {"kernel": jnp.array([[3.0], [4.0]])}, jnp.array([1.0, 1.0])
    own = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.zeros((1, 1)), "magnitude": jnp.array([10.0])}
    own["scale"] = jnp.array(2.0)
    loss = lambda own: KINDS["dora"].apply(own, x, x @ layer["kernel"], layer)[0]
    gradient = jax.grad(loss)(own)
    np.testing.assert_allclose(gradient["b"], [[10 / 5 * 2 * 3]], rtol=1e-6)
    np.testing.assert_allclose(gradient["magnitude"], [7 / 5], rtol=1e-6)


def test_a_dead_column_stays_finite():
    layer = {"w": {"kernel": jnp.zeros((2, 2))}}
    part, constants = init_lora(jax.random.key(0), layer, rank=1, dora=True)
    loss = lambda part: jnp.sum(merge(overlay(overlay(layer, constants), part))["w"]["kernel"])
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((loss(part), jax.grad(loss)(part))))


def test_kinds_lie_beside_each_other():
    """What both compute is merged in the order in which they act."""
    base, _, lora = started("rslora")
    vectors = started("ia3")[2]
    both = overlay(overlay(base, lora), vectors)
    merged = forward(merge_all(both))
    np.testing.assert_allclose(merged, forward(both), atol=5e-5)
    assert jnp.abs(merged - forward(base, lora)).max() > 0.1


@pytest.mark.slow
def test_members_have_adapters_of_their_own():
    keys = jax.random.split(jax.random.key(0), 3)
    init = lambda key, params: init_lora(key, params, rank=2).part
    stacked = jax.jit(jax.vmap(init, (0, None)))(keys, PARAMS)
    assert stacked["layers"]["up"]["lora"]["a"].shape == (3, 2, 16, 2)
    one = jax.jit(init)(keys[1], PARAMS)
    np.testing.assert_array_equal(stacked["layers"]["up"]["lora"]["a"][1], one["layers"]["up"]["lora"]["a"])
    together = jax.jit(jax.vmap(forward, (None, 0)))(BASE, disturb(stacked, keys[0], 0.3))
    assert together.shape == (3, 6, LM.config.vocab_size) and bool((together[0] != together[1]).any())


def test_keys_are_used_once():
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: init_lora(key, PARAMS, rank=2))(jax.random.key(0))


def test_an_overlay_is_a_merge_without_copies():
    base = {"a": {"kernel": jnp.ones(2), "bias": jnp.zeros(2)}, "b": jnp.arange(3)}
    part = {"a": {"bias": jnp.full(2, 7.0)}}
    laid = overlay(base, part)
    assert laid["a"]["bias"] is part["a"]["bias"]
    assert laid["a"]["kernel"] is base["a"]["kernel"] and laid["b"] is base["b"]
    assert base["a"]["bias"][0] == 0.0, "the base is left as it was"
    assert overlay(None, part) is part
    assert overlay(base["b"], base["b"] + 1)[0] == 1, "a tree may be one leaf"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"a": {"gain": jnp.ones(2)}},
            "got a/gain, but the base has bias, kernel there; the kinds dora, lora,",
        ),
        ({"c": jnp.ones(2)}, "got c, but the base has a, b there"),
        ({"a": {"bias": jnp.ones(3)}}, r"got shape \(3,\) at a/bias, where the base has shape \(2,\)"),
        ({"a": jnp.ones(3)}, r"got shape \(3,\) at a, where the base has the entries \['bias', 'kernel'\]"),
        ({"b": {"c": jnp.ones(3)}}, r"the entries \['c'\] at b, where the base has shape \(3,\)"),
        ({"lora": {"a": jnp.ones(3)}}, "got lora, but the base has a, b there"),
        (
            {"a": {"lora": {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2))}}},
            r"shape \(3, 1\) at a/lora/a, expected \(4, any\) beside a kernel of shape \(4, 2\)",
        ),
        (
            {"a": {"lora": {"a": jnp.ones((4, 1)), "b": jnp.ones(2)}}},
            r"shape \(2,\) at a/lora/b, expected \(any, 2\)",
        ),
    ],
)
def test_a_part_that_does_not_fit_names_the_place_and_what_is_there(part, message):
    base = {"a": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}, "b": jnp.arange(3)}
    with pytest.raises(ValueError, match="a part must fit its base; .*" + message):
        overlay(base, part)


def test_a_selection_is_a_part_of_the_leaves():
    found = select(PARAMS, "*bias")
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(found)}
    assert "['layers']['query']['bias']" in names and "['final_norm']['bias']" in names
    assert all(name.endswith("['bias']") for name in names) and len(names) == 9
    assert found["layers"]["query"]["bias"] is PARAMS["layers"]["query"]["bias"]
    assert set(select(PARAMS, ["layers/up/*", "tokens"])) == {"layers", "tokens"}
    assert select(PARAMS, lambda name: name == "layers/key/kernel") == {
        "layers": {"key": {"kernel": PARAMS["layers"]["key"]["kernel"]}}
    }


@pytest.mark.slow
def test_some_layers_alone_are_trained():
    """Top k: rows of the stacked leaves, each a leaf of the part; no state exists for the others."""
    part = select(PARAMS, ["layers/*/kernel", "*norm/*", "tokens"], layers=[-1])
    assert set(part["layers"]["rows"]) == {"1"} and set(part) == {"layers", "final_norm", "tokens"}
    assert part["layers"]["rows"]["1"]["up"]["kernel"].shape == (16, 64)
    assert bits(overlay(PARAMS, part)) == bits(PARAMS)
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        grads = jax.grad(lambda part: jnp.sum(forward(PARAMS, part)[2:] ** 2))(carry[0])
        updates, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    begin = (part, optimizer.init(part))
    trained = overlay(PARAMS, jax.jit(lambda c: jax.lax.scan(step, c, None, 100)[0][0])(begin))
    for name in LAYERS | {"attention_norm", "feed_forward_norm"}:
        for leaf, after in trained["layers"][name].items():
            before, moves = PARAMS["layers"][name][leaf], leaf == "kernel" or name.endswith("norm")
            assert bits(after[0]) == bits(before[0]), "a frozen row keeps its bits"
            assert (bits(after[1]) != bits(before[1])) == moves, (name, leaf)
    assert bits(trained["positions"]) == bits(PARAMS["positions"])
    assert bits(trained["tokens"]) != bits(PARAMS["tokens"])


@pytest.mark.filterwarnings("error")
def test_rows_are_named_and_keep_the_bases_type():
    base = {"layers": {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2)}}
    assert select(base, "*", layers=range(-2, 0))["layers"]["rows"].keys() == {"1", "2"}
    part = select(base, "*", layers=[2, 0])
    np.testing.assert_array_equal(part["layers"]["rows"]["2"]["w"], [4, 5])
    laid = overlay(base, jax.tree.map(lambda x: x.astype(jnp.float32) + 8, part))["layers"]["w"]
    np.testing.assert_array_equal(laid, jnp.array([[8, 9], [2, 3], [12, 13]], jnp.bfloat16))
    assert laid.dtype == jnp.bfloat16


def test_rows_lie_beside_whatever_else_a_part_holds():
    """An adapter of the same stack stays, whichever stands first, and rows may hold different leaves."""
    rows = {"0": {"w": {"bias": jnp.ones(2)}}, "2": {"v": jnp.full(4, 2.0)}}
    base = {"w": {"kernel": jnp.zeros((3, 2, 2)), "bias": jnp.zeros((3, 2))}, "v": jnp.zeros((3, 4))}
    scaled = {"w": {"ia3": {"vector": jnp.ones((3, 2))}}}
    for part in (scaled | {"rows": rows}, {"rows": rows} | scaled):
        laid = overlay(base, part)
        assert laid["w"].keys() == {"kernel", "bias", "ia3"}
        np.testing.assert_array_equal(laid["w"]["bias"], [[1, 1], [0, 0], [0, 0]])
        np.testing.assert_array_equal(laid["v"], [[0] * 4, [0] * 4, [2] * 4])
