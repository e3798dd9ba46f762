"""PEFT's adapter folders in and out; the expected answers come from `make_peft_folders`."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.runtime.huggingface import FAMILIES, load_adapter, load_model, save_adapter
from jaxrl_align.runtime.huggingface.adapters.peft_config import read_adapter
from jaxrl_align.runtime.huggingface.config import family_of
from tests.runtime.make_huggingface_fixtures import draw_tokens
from tests.runtime.make_peft_folders import FIXTURE, KEPT, draw_adapter, draw_part, draw_tuning, program
from tests.runtime.test_huggingface import assert_same, make_folder, save_file

FIXTURES = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"]
EVERY = [
    pytest.param(name, kind, marks=[] if name in ("gpt2", "llama_biased") else pytest.mark.slow)
    for name, kinds in FIXTURES.items()
    for kind in kinds
]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@functools.cache
def model_of(name):
    with tempfile.TemporaryDirectory() as folder:
        return load_model(make_folder(Path(folder) / "m", name))


def lay(base, tuning):
    return nets.overlay(nets.overlay(base, tuning.constants), tuning.part)


def merged(base, tuning):
    """Return the base with an adapter of linear layers folded in, by NumPy."""
    layers = {name: dict(leaves) for name, leaves in base["layers"].items()}
    for name, kinds in tuning.part["layers"].items():
        layer = layers[name]
        for kind, own in kinds.items():
            own = jax.tree.map(np.asarray, own)
            if kind.startswith("ia3"):
                side = np.s_[:, :, None] if kind == "ia3_input" else np.s_[:, None, :]
                layer["kernel"] = np.asarray(layer["kernel"]) * own["vector"][side]
                if kind == "ia3" and "bias" in layer:
                    layer["bias"] = np.asarray(layer["bias"]) * own["vector"]
                continue
            scale = np.asarray(tuning.constants["layers"][name][kind]["scale"])[:, None, None]
            layer["kernel"] = np.asarray(layer["kernel"]) + scale * (own["a"] @ own["b"])
            if kind == "dora":
                norms = np.sqrt((layer["kernel"] ** 2).sum(1, keepdims=True))
                layer["kernel"] = layer["kernel"] / norms * own["magnitude"][:, None]
    return base | {"layers": layers}


def lora(model, targets, rank=2, dora=False):
    start = lambda: nets.init_lora(jax.random.key(0), model.params, rank=rank, dora=dora, targets=targets)
    return draw_tuning(start)


def shapes_of(name, kind):
    return {key: tuple(shape) for key, shape in FIXTURES[name][kind]["shapes"].items()}


def write_folder(path, values, tensors):
    path.mkdir()
    (path / CONFIG).write_text(json.dumps(values), encoding="utf-8")
    save_file(tensors, path / WEIGHTS)
    return path


def peft_folder(path, name, kind, **changed):
    """Write what peft wrote of a kind, with other entries where given."""
    return write_folder(path, FIXTURES[name][kind]["config"] | changed, draw_adapter(shapes_of(name, kind)))


def read_back(folder):
    """Return a folder's configuration, its tensors and what the file says beside them."""
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")), tensors, file.metadata()


def save(path, model, tuning, **how):
    return save_adapter(path, model.config, nets.overlay(model.params, tuning.constants), tuning.part, **how)


def load(path, model, **how):
    return load_adapter(path, model.config, model.params, **how)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_what_peft_saved_answers_as_in_peft(name, kind, tmp_path):
    model, tokens = model_of(name), draw_tokens(40)
    fold = lay if kind in ("prompt", "prefix") else merged  # one compiled program for the other kinds
    params = fold(model.params, load(peft_folder(tmp_path / "theirs", name, kind), model))
    logits = program(model.config)(params, jnp.asarray(tokens))
    np.testing.assert_allclose(logits[KEPT], FIXTURES[name][kind]["logits"], rtol=0, atol=1e-4)
    if fold is merged:
        plain = program(model.config)(model.params, jnp.asarray(tokens))
        assert np.abs(plain - logits).max() > 0.3, "the adapter must change something"


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_what_peft_saved_comes_back_from_our_folder(name, kind, tmp_path):
    """With every entry that peft writes, and, where each layer of theirs is one of ours, its tensors."""
    model = model_of(name)
    theirs = load(peft_folder(tmp_path / "theirs", name, kind), model)
    values, tensors, beside = read_back(save(tmp_path / "ours", model, theirs, base_name="org/base"))
    config = FIXTURES[name][kind]["config"]
    assert values.keys() == config.keys()
    assert values["base_model_name_or_path"] == "org/base"
    told = {"r", "lora_alpha", "use_rslora", "init_weights", "prefix_projection", "base_model_name_or_path"}
    told |= {entry for entry in config if "pattern" in entry or "module" in entry or "layers_to" in entry}
    usual = config.keys() - told - {"encoder_hidden_size", "num_transformer_submodules"}
    assert {key: values[key] for key in usual} == {key: config[key] for key in usual}
    assert beside.keys() == {"format", "jaxrl_align_base_sha256"} and beside["format"] == "pt"
    drawn = draw_adapter(shapes_of(name, kind))
    if kind in ("lora", "rslora", "dora") and name == "gpt2":  # c_attn's blocks have other shapes
        drawn = {key: x for key, x in drawn.items() if "c_attn" not in key}
    for key, array in drawn.items():
        if kind == "prompt":
            np.testing.assert_allclose(tensors[key], array, rtol=1e-6)
        elif kind != "lora" or "down" not in key:
            np.testing.assert_array_equal(tensors[key], array, err_msg=key)
    again = load(tmp_path / "ours", model)
    for mine, his in zip(again, theirs, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), mine, his)


@pytest.mark.parametrize("name", ["gpt2", "llama_biased"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3", "prompt", "prefix"])
def test_what_we_save_we_load_bit_for_bit(name, kind, tmp_path):
    model = model_of(name)
    tuning = draw_part(kind, model)
    if name == "gpt2" and kind == "ia3":  # theirs is one vector: our untouched query comes back as ones
        tuning.part["layers"]["query"] = {"ia3": {"vector": jnp.ones((2, 16))}}
    again = load(save(tmp_path / "a", model, tuning), model)
    assert_same(again.part, tuning.part)
    assert_same(again.constants, tuning.constants)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    if name == "gpt2" and kind == "rslora":
        assert again.part["layers"].keys() == {"query", "value", "down"}


@pytest.mark.parametrize("dora", [False, True])
def test_one_layer_of_theirs_holds_ours_at_any_ranks_and_scales(dora, tmp_path):
    """c_attn: query at rank 2, value at rank 3, key untouched; DoRA's magnitudes of it are the base's."""
    model = model_of("gpt2")
    query, value = (lora(model, f"*{place}", rank, dora) for place, rank in (("query", 2), ("value", 3)))
    part = {"layers": query.part["layers"] | value.part["layers"]}
    steeper = jax.tree.map(lambda x: 3 * x, value.constants["layers"])
    constants = {"layers": query.constants["layers"] | steeper}
    tuning = nets.Tuning(part, constants)
    folder = save(tmp_path / "a", model, tuning)
    name = "base_model.model.transformer.h.1.attn.c_attn"
    assert read_back(folder)[1][f"{name}.lora_B.weight"].shape == (48, 5)
    got, want = merged(model.params, load(folder, model)), merged(model.params, tuning)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


def test_a_fresh_adapter_keeps_its_rank(tmp_path):
    """B = 0 throughout says nothing of whose a column is: all are kept, to be trained."""
    model = model_of("gpt2")
    fresh = lora(model, "*value")
    fresh.part["layers"]["value"]["lora"]["b"][:] = 0
    again = load(save(tmp_path / "a", model, fresh), model)
    assert again.part["layers"].keys() == {"query", "key", "value"}
    np.testing.assert_array_equal(
        again.part["layers"]["value"]["lora"]["a"], fresh.part["layers"]["value"]["lora"]["a"]
    )
    alone = lora(model, "*down")
    alone.part["layers"]["down"]["lora"]["b"][:, 0] = 0  # of a layer of its own it says nothing either
    assert_same(load(save(tmp_path / "b", model, alone), model).part, alone.part)


def test_the_dropout_of_training_is_kept(tmp_path):
    """PEFT has one rate for all layers."""
    model = model_of("llama")
    start = lambda rate, target: nets.init_lora(
        jax.random.key(0), model.params, rank=2, dropout=rate, targets=target
    )
    part, constants = start(0.05, "*query")
    folder = save_adapter(tmp_path / "a", model.config, nets.overlay(model.params, constants), part)
    assert read_back(folder)[0]["lora_dropout"] == 0.05
    assert_same(load_adapter(folder, model.config, model.params).constants, constants)
    other = start(0.1, "*value")
    base = nets.overlay(nets.overlay(model.params, constants), other.constants)
    both = {"layers": part["layers"] | other.part["layers"]}
    with pytest.raises(ValueError, match=r"base must hold one dropout for all layers; got \[0.05"):
        save_adapter(tmp_path / "b", model.config, base, both)


def test_magnitudes_count_where_b_is_zero(tmp_path):
    model = model_of("gpt2")
    tuning = lora(model, ("*query", "*key", "*value"), dora=True)
    tuning.part["layers"]["key"]["dora"]["b"][:] = 0
    again = load(save(tmp_path / "a", model, tuning), model)
    got, want = (merged(model.params, t)["layers"]["key"]["kernel"] for t in (again, tuning))
    np.testing.assert_allclose(got, want, rtol=1e-6)


TINY = nets.TransformerConfig(12, width=4, layers=1, heads=1, context=6)


def lora_config(**changed):
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["c_attn"]} | changed


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 2), (True, 6 / 2**0.5)])
def test_a_small_adapter_by_hand(rslora, scale, tmp_path):
    """Five entries are enough; delta = alpha / r (B A)^T, whose columns are query's, key's and value's."""
    shapes = jax.eval_shape(nets.make_transformer(TINY).init, jax.random.key(0))
    base = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    a = np.array([[1, 2, 3, 4], [0, 1, 0, -1]], np.float32)
    b = np.array([[i, 2 * i + 1] for i in range(12)], np.float32)
    name = "base_model.model.transformer.h.0.attn.c_attn"
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    folder = write_folder(tmp_path / "a", lora_config(use_rslora=rslora), tensors)
    got = merged(base, load_adapter(folder, TINY, base))["layers"]
    for place, rows in (("query", slice(0, 4)), ("key", slice(4, 8)), ("value", slice(8, 12))):
        delta = np.zeros((4, 4))
        for i in range(4):
            for j in range(4):
                delta[i, j] = scale * sum(b[rows][j, k] * a[k, i] for k in range(2))
        np.testing.assert_allclose(
            got[place]["kernel"][0] - base["layers"][place]["kernel"][0], delta, rtol=1e-5
        )


def covered(name, tmp_path, **changed):
    """Return the names, ranks and scales of the layers that a configuration covers."""
    config = model_of(name).config
    (tmp_path / CONFIG).write_text(json.dumps(lora_config(**changed)), encoding="utf-8")
    adapter = read_adapter(tmp_path / CONFIG, config, FAMILIES[family_of(config)])
    return {m.name.split(".", 2)[2]: (m.rank, round(m.scale, 6)) for m in adapter.modules}


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("gpt2", {"target_modules": ["c_proj"]}, {f"{i}.{m}.c_proj" for i in "01" for m in ("attn", "mlp")}),
        ("gpt2", {"target_modules": ["mlp.c_proj"]}, {"0.mlp.c_proj", "1.mlp.c_proj"}),
        ("gpt2", {"target_modules": ["proj", "c_fc"]}, {"0.mlp.c_fc", "1.mlp.c_fc"}),
        ("gpt2", {"target_modules": r".*\.1\..*c_fc"}, {"1.mlp.c_fc"}),
        ("gpt2", {"target_modules": "c_fc|.*0.mlp.c_fc|.*1.mlp.c_f"}, {"0.mlp.c_fc"}),
        ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": 1}, {"1.mlp.c_fc"}),
        ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [0]}, {"0.mlp.c_fc"}),
        ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": []}, {"0.mlp.c_fc", "1.mlp.c_fc"}),
        (
            "gpt2",
            {"target_modules": ["c_fc"], "layers_to_transform": [0], "layers_pattern": ["layers", "h"]},
            {"0.mlp.c_fc"},
        ),
        (
            "gpt2",
            {"target_modules": ["transformer.h.1.mlp.c_fc", "c_proj"], "layers_to_transform": [0]},
            {"1.mlp.c_fc", "0.mlp.c_proj", "0.attn.c_proj"},
        ),
        (
            "llama",
            {"target_modules": "all-linear", "exclude_modules": r".*(mlp|[qk]_proj).*"},
            {f"{i}.self_attn.{m}_proj" for i in "01" for m in "vo"},
        ),
        (
            "llama",
            {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["lm_head", "0.self_attn.q_proj"]},
            {"1.self_attn.q_proj"},
        ),
    ],
)
def test_the_layers_that_peft_would_cover(name, changed, expected, tmp_path):
    assert covered(name, tmp_path, **changed).keys() == expected


def test_patterns_of_ranks_and_scales(tmp_path):
    """The first that a name ends with counts; it is a regular expression, whole from a dot on."""
    patterns = {"rank_pattern": {"fc": 9, r"1.mlp.c_\w+": 4, "mlp.c_fc": 3}}
    patterns |= {"alpha_pattern": {"transformer.h.0.mlp.c_fc": 9}, "target_modules": ["c_fc", "mlp.c_proj"]}
    expected = {
        "0.mlp.c_fc": (3, 3.0),
        "1.mlp.c_fc": (4, 1.5),
        "0.mlp.c_proj": (2, 3.0),
        "1.mlp.c_proj": (4, 1.5),
    }
    assert covered("gpt2", tmp_path, **patterns) == expected
    stable = covered("gpt2", tmp_path, **patterns, use_rslora=True)
    assert stable["0.mlp.c_fc"] == (3, round(9 / 3**0.5, 6)) and stable["1.mlp.c_fc"] == (4, 3.0)


def test_a_prefix_of_a_projection_is_read_as_what_it_made(tmp_path):
    """The file holds keys and values; the projection is not in it."""
    model = model_of("gpt2")
    plain = load(peft_folder(tmp_path / "a", "gpt2", "prefix"), model)
    projected = load(peft_folder(tmp_path / "b", "gpt2", "prefix", prefix_projection=True), model)
    assert_same(projected.part, plain.part)


def test_layers_that_an_adapter_does_not_cover_compute_as_before(tmp_path):
    """Here the first: at B = 0 and A = 0 it never trains either."""
    model = model_of("llama_biased")
    tuning = load(peft_folder(tmp_path / "a", "llama_biased", "rslora"), model)
    own = tuning.part["layers"]["query"]["lora"]
    assert not own["a"][0].any() and not own["b"][0].any() and own["b"][1].any()
    got = merged(model.params, tuning)["layers"]["query"]["kernel"]
    np.testing.assert_array_equal(got[0], model.params["layers"]["query"]["kernel"][0])
    scale = tuning.constants["layers"]["query"]["lora"]["scale"]
    np.testing.assert_allclose(scale, [5 / 3**0.5] * 2, rtol=1e-6)


def test_ia3_that_covers_the_second_layer(tmp_path):
    """The vectors of the first are ones; feedforward_modules may be a pattern too."""
    model, vector = model_of("gpt2"), np.arange(48, dtype=np.float32)
    values = {"peft_type": "IA3", "target_modules": r".*\.1\.attn\.c_(attn|proj)"}
    values["feedforward_modules"] = r".*\.1\.attn\.c_proj"
    names = [f"base_model.model.transformer.h.1.attn.c_{name}.ia3_l" for name in ("attn", "proj")]
    tensors = {names[0]: vector[:, None], names[1]: vector[None, :16]}
    own = load(write_folder(tmp_path / "a", values, tensors), model).part["layers"]
    for name, kind, rows in (("query", "ia3", 0), ("value", "ia3", 32), ("attention_out", "ia3_input", 0)):
        np.testing.assert_array_equal(own[name][kind]["vector"], [np.ones(16), vector[rows : rows + 16]])


def test_an_input_that_three_of_ours_share_is_one_vector(tmp_path):
    model, vector = model_of("gpt2"), np.full((2, 16), 2, np.float32)
    own = {name: {"ia3_input": {"vector": vector}} for name in ("query", "key", "value")}
    tuning = nets.Tuning({"layers": own}, {})
    folder = save(tmp_path / "a", model, tuning)
    assert read_back(folder)[1]["base_model.model.transformer.h.0.attn.c_attn.ia3_l"].shape == (1, 16)
    assert_same(load(folder, model).part, tuning.part)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_float32(dtype, tmp_path):
    model, name, kind = model_of("llama_biased"), "llama_biased", "rslora"
    half = {key: x.astype(jnp.dtype(dtype)) for key, x in draw_adapter(shapes_of(name, kind)).items()}
    folder = write_folder(tmp_path / "a", FIXTURES[name][kind]["config"], half)
    whole = {key: x.astype(np.float32) for key, x in half.items()}
    same = write_folder(tmp_path / "b", FIXTURES[name][kind]["config"], whole)
    assert_same(load(folder, model).part, load(same, model).part)


def test_a_bfloat16_part_is_saved_as_bfloat16(tmp_path):
    model = model_of("gpt2")
    whole = draw_part("dora", model)
    tuning = nets.Tuning(jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole.part), whole.constants)
    folder = save(tmp_path / "a", model, tuning)
    assert {x.dtype.name for x in read_back(folder)[1].values()} == {"bfloat16"}
    assert_same(load(folder, model).part, jax.tree.map(lambda x: x.astype(jnp.float32), tuning.part))


def test_a_saved_adapter_knows_its_base(tmp_path):
    """By content: another dtype or packing is another base, for which the user may insist."""
    model = model_of("gpt2")
    tuning = draw_part("ia3", model)
    folder = save(tmp_path / "a", model, tuning)
    half = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), model.params)
    with pytest.raises(ValueError, match="another dtype or packing; load that one, or pass any_base=True"):
        load_adapter(folder, model.config, half)
    insisted = load_adapter(folder, model.config, half, any_base=True)
    assert_same(insisted.part, load(folder, model).part)
    laid = lay(model.params, tuning)  # what lies over a base is not of it
    assert_same(load_adapter(folder, model.config, laid).part, insisted.part)
    save_adapter(tmp_path / "b", model.config, laid, tuning.part)
    assert_same(load(tmp_path / "b", model).part, insisted.part)


def test_an_adapter_of_a_packed_base(tmp_path):
    """QLoRA, with DoRA's magnitudes of the untouched columns from the packed kernel."""
    model = model_of("gpt2")
    packed = model._replace(params=nets.quantise_params(model.params, "int8"))
    tuning = lora(packed, "*query", dora=True)
    folder = save(tmp_path / "a", packed, tuning)
    assert_same(load(folder, packed).part["layers"]["query"], tuning.part["layers"]["query"])
    got = read_back(folder)[1]["base_model.model.transformer.h.1.attn.c_attn.lora_magnitude_vector"]
    kernel = np.asarray(nets.dequantise(packed.params["layers"]["value"]["kernel"])[1])
    np.testing.assert_allclose(got[32:], np.sqrt((kernel**2).sum(0)), rtol=1e-6)
    with pytest.raises(ValueError, match="another dtype or packing"):
        load(folder, model)


def test_a_folder_is_as_large_as_its_weights(tmp_path):
    """Rank 2 on query and value of a model of 20 thousand weights: kilobytes."""
    model = model_of("llama_biased")
    tuning = lora(model, ("*query", "*value"))
    folder = save(tmp_path / "a", model, tuning)
    weights = sum(x.nbytes for x in jax.tree.leaves(tuning.part))
    assert weights == 4 * 2 * 2 * (16 + 24 + 16 + 12) == 1088
    assert 0 < (folder / WEIGHTS).stat().st_size - weights < 1500
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5000


def test_no_folder_is_overwritten_and_none_is_left_half_written(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = model_of("gpt2")
    tuning = draw_part("ia3", model)
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", model, tuning)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(ValueError, match="a exists already; give a new name, or remove it"):
        save(tmp_path / "a", model, tuning)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "b", model, tuning)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_configuration_of_no_family_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(
        ValueError, match="no Hugging Face family has this configuration: gpt2 cannot hold no"
    ):
        save_adapter(tmp_path / "a", nets.TransformerConfig(20, norm="none"), {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.optimised
@pytest.mark.slow
def test_lora_on_a_published_model_comes_back(real_model, tmp_path):
    tuning = nets.init_lora(jax.random.key(0), real_model.params, rank=8, targets=("*query", "*value"))
    part = jax.tree.map(lambda x: x + 0.01, tuning.part)
    folder = save(tmp_path / "a", real_model, nets.Tuning(part, tuning.constants))
    assert (folder / WEIGHTS).stat().st_size < 2e6
    again = load(folder, real_model)
    assert_same(again.part, part)
    assert_same(again.constants, tuning.constants)
    text = real_model.tokenizer.encode("The capital of France is")
    answer = functools.partial(program(real_model.config), tokens=jnp.asarray(text))
    laid = answer(lay(real_model.params, again))
    np.testing.assert_array_equal(laid, answer(lay(real_model.params, nets.Tuning(part, tuning.constants))))
    assert np.abs(laid - answer(real_model.params)).max() > 0.1
