"""The rules by which leaves lie on a mesh; what programs make of them is in `tests/devices`."""

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align import nets
from jaxrl_align.nets.sharding import leaf_spec, output_shards, place_weights, read_gathered, weight_spec
from jaxrl_align.placement import fit_spec, place_rows
from jaxrl_align.runtime.devices.spreading import names_of, shardings, spread
from jaxrl_align.runtime.mesh import make_mesh, use_mesh

LM = nets.make_transformer(
    nets.TransformerConfig(
        64, width=16, layers=2, heads=2, positions="rotary", feed_forward="swiglu", tied_head=False
    )
)
PARAMS = jax.eval_shape(LM.init, jax.random.key(0))
SIZES = {"data": 2, "fsdp": 4, "model": 2}


@pytest.mark.parametrize(
    ("path", "rank", "spec"),
    [
        ("layers/query/kernel", 3, (None, "model")),
        ("layers/attention_out/kernel", 3, ("model", None)),
        ("lm/layers/up/bias", 2, ("model",)),
        ("lm/layers/down/bias", 2, (None,)),
        ("layers/up/lora/b", 3, (None, "model")),
        ("layers/down/lora/a", 3, ("model", None)),
        ("layers/down/lora/b", 3, (None, None)),
        ("layers/value/kernel/nf4/codes", 3, ("model", None)),
        ("layers/down/kernel/nf4/codes", 3, (None, "model")),
        ("layers/value/kernel/nf4/offset", 1, None),
        ("layers/down/ia3_input/vector", 2, ("model",)),
        ("layers/key/houlsby/down", 3, ("model", None)),
        ("layers/key/houlsby/up_bias", 2, ("model",)),
        ("layers/up/dora/magnitude", 2, ("model",)),
        ("layers/down/dora/magnitude", 2, (None,)),
        ("layers/up/lora/scale", 1, None),
        ("layers/attention_norm/scale", 2, None),
        ("tokens", 2, ("model", None)),
        ("mu/lm/tokens", 3, ("model", None)),
        ("head", 2, (None, "model")),
        ("head/kernel", 1, None),
        ("value/kernel", 1, None),  # RLHF's value head, not attention's values
        ("trunk/kernel", 2, None),
    ],
)
def test_a_leaf_is_divided_by_its_name(path, rank, spec):
    assert leaf_spec(tuple(path.split("/")), rank) == spec


def test_a_field_of_a_batch_is_no_embedding():
    """`TokenBatch.tokens` and `params["tokens"]` differ by the kind of their path's end."""
    from jaxrl_align.types import TokenBatch

    batch = TokenBatch(jnp.zeros((4, 8)), jnp.zeros((4, 8)), jnp.zeros((4, 8)))
    ((path, _), *_) = jax.tree_util.tree_leaves_with_path({"rows": batch})
    assert names_of(path) == ("rows", ".tokens") and leaf_spec(names_of(path), 2) is None


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("layers/up/kernel", (2, 128, 256), (None, "fsdp", "model")),
        ("layers/down/kernel", (2, 256, 128), (None, "model", "fsdp")),
        ("layers/up/kernel", (2, 127, 256), (None, None, ("model", "fsdp"))),
        ("layers/up/kernel", (2, 128, 255), (None, "fsdp", None)),
        ("layers/up/kernel", (3, 2, 128, 256), (None, None, "fsdp", "model")),  # members
        ("layers/up/kernel", (2, 16, 16), (None, None, "model")),  # small
        ("layers/up/kernel/nf4/absmax", (2, 2**14), (None, ("model", "fsdp"))),
        ("tokens", (255, 128), (None, "fsdp")),
        ("layers/attention_norm/scale", (64, 8192), None),
    ],
)
def test_fsdp_takes_the_largest_free_axis_of_a_layer(path, shape, spec):
    """Never that of the layers, along which the scan goes."""
    assert weight_spec(tuple(path.split("/")), shape, SIZES) == spec


def test_axes_that_there_are_not_and_that_do_not_divide_are_left_out():
    assert fit_spec((6, 8), (("data", "fsdp"), "model"), SIZES) == (None, "model")
    assert fit_spec((8, 7), (("data", "fsdp"), "model"), SIZES) == (("data", "fsdp"), None)
    assert fit_spec((8, 8), (("data", "fsdp"), "model"), {"fsdp": 4}) == ("fsdp", None)
    assert fit_spec((4, 8), ("model",), {"model": 1}) == (None, None)


def test_without_a_mesh_nothing_is_placed():
    """The program is the same, to the object."""
    tree = {"layers": {"query": {"kernel": jnp.ones((2, 4, 4))}}}
    f = lambda x: x
    assert place_rows(tree) is tree and place_weights(tree) is tree and spread(tree) is tree
    assert read_gathered(f) is f and output_shards("query") == 1
    assert "sharding" not in jax.jit(lambda p: LM.logits(p, jnp.zeros(16))).lower(PARAMS).as_text()


def test_every_kernel_of_a_model_has_a_rule():
    ruled = {
        "/".join(names_of(path)): leaf_spec(names_of(path), len(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS)
    }
    assert [name for name, rule in ruled.items() if rule is None and "norm" not in name] == []


def test_a_mesh_of_one_device_changes_nothing():
    with use_mesh("data=1"):
        state = spread({"layers": {"query": {"kernel": jnp.ones((2, 4, 4))}}, "key": jax.random.key(0)})
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    mesh = make_mesh("auto", members=3)
    assert dict(mesh.shape) == {"members": 1, "fsdp": 1}
    assert jax.tree.structure(shardings(mesh, PARAMS)) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=x", "rows=2", "data=1,data=1", "data=1,"])
def test_a_text_that_is_no_mesh_is_refused(text):
    with pytest.raises(ValueError, match="--mesh must be auto, or sizes of the axes members, data, fsdp, mo"):
        make_mesh(text)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="all of the 1 cpu devices; got data=4,model=2, which are 8"):
        make_mesh("data=4,model=2")
