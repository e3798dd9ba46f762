import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.adapters import TARGETS, init_lora, merge_lora
from jaxrl_align.nets.transformer import make_transformer
from tests.tiny import LM, PARAMS, bits, disturb

TOKENS = jnp.array([0, 0, 5, 3, 9, 17])
MASK = jnp.array([0.0, 0, 1, 1, 1, 1])
FRESH = jax.jit(lambda key: init_lora(key, PARAMS, rank=3))(jax.random.key(2))
TRAINED = jax.jit(lambda key: disturb(FRESH, key, 0.3))(jax.random.key(3))
merge = jax.jit(lambda params, adapter, scale: merge_lora(params, adapter, scale=scale))


@jax.jit
def forward(params, adapter=None):
    return LM.logits(params, LM.encode(params, TOKENS, MASK, adapter=adapter)[0])


def test_a_fresh_adapter_is_the_identity():
    np.testing.assert_array_equal(forward(PARAMS, FRESH), forward(PARAMS))


def test_merged_equals_unmerged():
    """Lecture D5; the scale of `make_transformer` is the scale that `merge_lora` needs."""
    adapted = forward(PARAMS, TRAINED)
    assert jnp.abs(adapted - forward(PARAMS)).max() > 0.1, "the adapter must do something"
    merged = merge(PARAMS, TRAINED, 2.0)
    np.testing.assert_allclose(forward(merged), adapted, atol=1e-5)


def test_an_adapter_works_through_the_cache():
    step, positions = jax.jit(LM.encode), jnp.array([0, 0, 0, 1, 2, 3])
    full = step(PARAMS, TOKENS, MASK, adapter=TRAINED)[0]
    hidden, cache = step(PARAMS, TOKENS[:3], MASK, LM.init_cache(6), 0, positions[:3], TRAINED)
    for i in range(3, 6):
        hidden, cache = step(PARAMS, TOKENS[i : i + 1], MASK, cache, i, positions[i : i + 1], TRAINED)
        np.testing.assert_allclose(hidden[0], full[i], atol=1e-5)


def test_every_change_of_weight_has_at_most_the_adapters_rank():
    merged = jax.tree.map(np.asarray, merge(PARAMS, TRAINED, 2.0))
    for name in TARGETS:
        delta = merged["layers"][name]["kernel"] - PARAMS["layers"][name]["kernel"]
        for layer, kernel in zip(range(2), delta, strict=True):
            singular = np.linalg.svd(kernel, compute_uv=False)
            assert singular[2] > 0.01 and singular[3] < 1e-5 * singular[0], (name, layer)


def test_merging_by_hand():
    base = {"w": {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.array([1.0, 2.0])}}
    adapter = {"w": {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0, 4.0]])}}
    merged = merge_lora(base, adapter, scale=0.5)
    np.testing.assert_array_equal(merged["w"]["kernel"], [[2.5, 2.0], [3.0, 5.0]])
    np.testing.assert_array_equal(merged["w"]["bias"], base["w"]["bias"])


def test_merging_leaves_all_but_the_targets_alone():
    adapter = disturb(
        init_lora(jax.random.key(0), PARAMS, rank=1, targets=("query",)), jax.random.key(1), 0.3
    )
    before = bits(PARAMS)
    merged = merge_lora(PARAMS, adapter, scale=1.0)
    assert bits(PARAMS) == before
    moved = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), PARAMS, merged)
    )
    assert [jax.tree_util.keystr(path) for path, changed in moved if changed] == [
        "['layers']['query']['kernel']"
    ]


def test_the_lectures_example_trains_14_percent_of_the_parameters():
    """Lecture D6: 512 x 64 at rank 8 is 512 * 8 + 8 * 64 = 4,608 instead of 32,768, 85.94% fewer."""
    adapter = init_lora(jax.random.key(0), {"w": {"kernel": jnp.zeros((512, 64))}}, rank=8, targets=("w",))
    assert adapter["w"]["a"].shape == (512, 8) and adapter["w"]["b"].shape == (8, 64)
    count = sum(x.size for x in jax.tree.leaves(adapter))
    assert count == 4608
    assert round(100 * (1 - count / (512 * 64)), 2) == 85.94


def test_an_adapter_starts_uniform_within_the_bound_and_zero():
    layers = jax.jit(lambda key: init_lora(key, PARAMS, rank=8))(jax.random.key(0))["layers"]
    assert set(layers) == set(TARGETS)
    assert layers["query"]["a"].shape == (2, 16, 8) and layers["down"]["a"].shape == (2, 64, 8)
    for name, layer in layers.items():
        bound = layer["a"].shape[1] ** -0.5
        assert 0.9 * bound < jnp.abs(layer["a"]).max() <= bound, name
        assert not layer["b"].any()
    assert not np.array_equal(layers["query"]["a"], layers["key"]["a"])


def test_gradients_flow_to_the_adapter_and_from_the_first_step_on():
    gradient = jax.jit(jax.grad(lambda adapter: jnp.sum(forward(PARAMS, adapter)[2:] ** 2)))
    first, later = gradient(FRESH)["layers"], gradient(TRAINED)["layers"]
    for name in TARGETS:
        # B = 0 keeps A still at first; a key's bias shifts no attention, but its weights do.
        assert not first[name]["a"].any() and first[name]["b"].any(), name
        assert later[name]["a"].any() and later[name]["b"].any(), name


def test_the_scale_multiplies_the_adapter():
    plain = make_transformer(LM.config, lora_scale=1.0)
    doubled = jax.tree_util.tree_map_with_path(lambda path, x: 2.0 * x if path[-1].key == "b" else x, TRAINED)
    got = plain.logits(PARAMS, plain.encode(PARAMS, TOKENS, MASK, adapter=doubled)[0])
    np.testing.assert_allclose(got, forward(PARAMS, TRAINED), atol=1e-5)


def test_members_have_adapters_of_their_own():
    keys = jax.random.split(jax.random.key(0), 3)
    init = lambda key, params: init_lora(key, params, rank=2)
    stacked = jax.jit(jax.vmap(init, (0, None)))(keys, PARAMS)
    assert stacked["layers"]["up"]["a"].shape == (3, 2, 16, 2)
    one = jax.jit(init)(keys[1], PARAMS)
    np.testing.assert_array_equal(stacked["layers"]["up"]["a"][1], one["layers"]["up"]["a"])


def test_keys_are_used_once():
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: init_lora(key, PARAMS, rank=2))(jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be at least 1; got 0"),
        ({"rank": 2, "targets": ("query", "qkv")}, r"got \['qkv'\], the model has \['attention_out', 'down'"),
    ],
)
def test_adapters_that_cannot_be_built_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        init_lora(jax.random.key(0), PARAMS, **arguments)
