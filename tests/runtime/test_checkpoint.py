import json
import resource
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.runtime.checkpoint import latest_step, restore, save


class Carry(NamedTuple):
    params: Any
    opt_state: Any
    key: Any
    frozen: Any = None


def make_state():
    params = {
        "float32": jnp.array([1e-45, -0.0, jnp.inf, jnp.nan, 0.1], jnp.float32),
        "bfloat16": jnp.array([[0.1, -3e38]], jnp.bfloat16),
        "float8": jnp.array([0.5, 448.0], jnp.float8_e4m3fn),
        "int8": jnp.arange(-3, 3, dtype=jnp.int8),
        "uint32": jnp.array(2**32 - 1, jnp.uint32),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "list": [jnp.float32(1.5), None, (jnp.int32(-7),)],
    }
    key = {"one": jax.random.key(3), "many": jax.random.split(jax.random.key(4, impl="rbg"), (2, 3))}
    return Carry(params, optax.adam(1e-3).init({"w": jnp.ones(2)}), key)


def raw(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


@pytest.mark.parametrize("abstract", [False, True])
def test_every_leaf_keeps_type_shape_and_bits(tmp_path, abstract):
    state = make_state()
    save(tmp_path, 7, state, {})
    got, step = restore(tmp_path, jax.eval_shape(lambda: state) if abstract else state, {})
    assert step == 7
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    assert jax.random.uniform(got.key["one"]) == jax.random.uniform(state.key["one"])


def test_a_checkpoint_opens_with_plain_numpy_and_no_pickle(tmp_path):
    path = save(tmp_path, 1, Carry({"w": jnp.arange(3.0)}, None, None), {"width": 3})
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file[".params['w']"], [0.0, 1.0, 2.0])
        metadata = json.loads(file["__metadata__"].tobytes())
    assert metadata["version"] == 1 and metadata["step"] == 1 and metadata["config"] == {"width": 3}


def test_the_last_two_are_kept(tmp_path):
    assert latest_step(tmp_path / "absent") is None and latest_step(tmp_path) is None
    for step in (5, 10, 100):
        save(tmp_path, step, {"x": jnp.float32(step)}, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint_000000010.npz", "checkpoint_000000100.npz"]
    assert latest_step(tmp_path) == 100
    assert restore(tmp_path, {"x": jnp.float32(0)})[0] == {"x": 100.0}


def test_saving_an_earlier_step_removes_the_later_ones(tmp_path):
    for step in (10, 20, 15):
        save(tmp_path, step, {"x": jnp.float32(step)}, {})
    assert restore(tmp_path, {"x": jnp.float32(0)}) == ({"x": 15.0}, 15)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9]])
def test_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    save(tmp_path, 10, {"x": jnp.arange(100.0)}, {})
    newest = save(tmp_path, 20, {"x": jnp.zeros(100)}, {})
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint_000000020.npz is damaged .*; trying the one before"):
        state, step = restore(tmp_path, {"x": jnp.zeros(100)})
    assert step == 10
    np.testing.assert_array_equal(state["x"], np.arange(100.0))


def test_a_file_that_says_one_part_many_times_takes_no_more_memory_than_it_has(tmp_path):
    """A zip's directory may name the same stored bytes again and again."""
    path = save(tmp_path, 10, {"x": jnp.zeros(1000)}, {})
    data = path.read_bytes()
    begin = int.from_bytes(data[-6:-2], "little")
    part = data[begin:-22][: data[begin:].index(b"PK\x01\x02", 4)]
    count = (1000).to_bytes(2, "little") * 2
    end = data[-22:-14] + count + (1000 * len(part)).to_bytes(4, "little") + data[-6:]
    path.write_bytes(data[:begin] + 1000 * part + end)
    with pytest.warns(UserWarning, match="unpacks to more than it holds"), pytest.raises(ValueError):
        restore(tmp_path, {"x": jnp.zeros(1000)})


@pytest.mark.parametrize(
    "lie",
    [
        {"['x']": np.zeros(99, np.float32)},
        {"['x']": np.zeros(100, ">f4")},
        {"['x']": np.zeros(100, "<U1")},
        {"['x']": np.zeros(100, np.float64)},
        {"['y']": np.zeros(3)},
        {"['x']": np.array([None] * 100)},
    ],
)
def test_arrays_that_are_not_those_of_the_metadata_are_damage(tmp_path, lie):
    path = save(tmp_path, 10, {"x": jnp.arange(100.0)}, {})
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **(arrays | lie))
    message = "its arrays are not those|cannot create an OBJECT array"
    with pytest.warns(UserWarning, match=message), pytest.raises(ValueError, match="no other is whole"):
        restore(tmp_path, {"x": jnp.zeros(100)})


def test_whether_a_leaf_is_a_random_key_is_not_taken_from_the_file_alone(tmp_path):
    path = save(tmp_path, 10, {"x": jnp.zeros(3, jnp.uint32)}, {})
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(arrays["__metadata__"].tobytes())
    metadata["leaves"]["['x']"]["impl"] = "threefry2x32"
    np.savez(path, **arrays | {"__metadata__": np.frombuffer(json.dumps(metadata).encode(), np.uint8)})
    with pytest.raises(ValueError, match=r"does not say whether \['x'\] is a random key; it is damaged"):
        restore(tmp_path, {"x": jnp.zeros(3, jnp.uint32)})


def test_damaged_only_checkpoint_is_named_with_a_remedy(tmp_path):
    path = save(tmp_path, 10, {"x": jnp.arange(100.0)}, {})
    path.write_bytes(path.read_bytes()[:300])
    message = "checkpoint_000000010.npz is damaged and no other is whole; pass --out with a new folder"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=message):
        restore(tmp_path, {"x": jnp.zeros(100)})


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_no_flipped_byte_ever_gives_other_numbers(tmp_path):
    state = {"x": jnp.arange(20.0)}
    path = save(tmp_path, 10, state, {"width": 3})
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[position] ^= 0x55
        path.write_bytes(flipped)
        try:
            got, _ = restore(tmp_path, state, {"width": 3})
        except ValueError:
            refused += 1
        else:  # bytes that carry no content, such as time stamps
            np.testing.assert_array_equal(got["x"], state["x"])
    assert refused > len(data) // 3 // 3


def test_another_configuration_names_the_fields(tmp_path):
    save(tmp_path, 10, {"x": jnp.zeros(3)}, {"width": 64, "depth": 2, "ppo": {"clip": 0.2}, "out": "a"})
    expected = (
        f"checkpoint in {tmp_path} was made with width=64, ppo.clip=0.2, "
        "but this run has width=128, ppo.clip=0.1; "
        "pass --out with a new folder, or the same configuration"
    )
    with pytest.raises(ValueError) as error:
        restore(tmp_path, {"x": jnp.zeros(3)}, {"width": 128, "depth": 2, "ppo": {"clip": 0.1}, "out": "b"})
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": {"w": jnp.zeros((3, 5))}}, r"holds \['a'\]\['w'\] as float32\[3, 4\], but .* float32\[3, 5\]"),
        ({"a": {"w": jnp.zeros((3, 4), jnp.bfloat16)}}, r"but this run expects bfloat16\[3, 4\]"),
        ({"a": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}}, r"lacks \['a'\]\['b'\], which this run has"),
        ({"a": {"w": None}}, r"holds \['a'\]\['w'\], which this run does not have"),
        ({"a": {"w": jax.random.split(jax.random.key(0), (3, 4))}}, r"this run expects key<fry>\[3, 4\]"),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(tmp_path, template, message):
    save(tmp_path, 10, {"a": {"w": jnp.zeros((3, 4))}}, {})
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, template, {})


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrl_align.runtime.checkpoint.VERSION", 2)
    save(tmp_path, 10, {"x": jnp.zeros(3)}, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format version 2, expected 1"):
        restore(tmp_path, {"x": jnp.zeros(3)})


def test_nothing_to_restore(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        restore(tmp_path, {"x": jnp.zeros(3)})


def test_a_write_past_the_size_limit_leaves_the_last_checkpoint(tmp_path):
    """A real short write: the kernel refuses bytes beyond a file size limit, as a full disk does."""
    small, large = {"x": jnp.arange(4.0)}, {"x": jnp.zeros(100_000)}
    save(tmp_path, 10, small, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not write .*checkpoint_000000020.npz.* step 10 is intact"):
            save(tmp_path, 20, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000000010.npz"]
    np.testing.assert_array_equal(restore(tmp_path, small)[0]["x"], [0.0, 1.0, 2.0, 3.0])


def test_a_process_killed_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 10, {"x": jnp.float32(1)}, {})

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(SystemExit):
        save(tmp_path, 20, {"x": jnp.float32(2)}, {})
    monkeypatch.undo()
    (tmp_path / ".checkpoint_000000020.tmp1.npz").write_bytes(b"half")  # what a hard kill leaves
    assert restore(tmp_path, {"x": jnp.float32(0)}) == ({"x": 1.0}, 10)
