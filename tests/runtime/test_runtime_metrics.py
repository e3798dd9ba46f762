import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.metrics import append_metrics, read_metrics, recover_metrics
from tests.runtime.counting import count


def test_every_float32_comes_back_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    append_metrics(tmp_path / "m", 0, {"loss": values})
    assert read_metrics(tmp_path / "m")["loss"].astype(np.float32).tobytes() == values.tobytes()


def test_rows_of_members_types_and_missing_values(tmp_path):
    history = {
        "loss": np.array([[0.1, np.nan], [np.inf, -1.0]], np.float32),
        "count": np.array([3, 2**31 - 1], np.int32),
        "done": np.array([True, False]),
        "half": np.asarray(jnp.array([0.1, 2.0], jnp.bfloat16)),
    }
    append_metrics(tmp_path / "m", 0, history)
    rows = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    tenth, half = float(np.float32(0.1)), 0.10009765625
    assert rows[0] == {"step": 0, "loss": [tenth, None], "count": 3, "done": True, "half": half}
    assert rows[1] == {"step": 1, "loss": [None, -1.0], "count": 2**31 - 1, "done": False, "half": 2.0}
    got = read_metrics(tmp_path / "m")
    np.testing.assert_array_equal(got["loss"].astype(np.float32), [[np.float32(0.1), np.nan], [np.nan, -1.0]])
    assert got["count"].dtype == int and got["done"].dtype == bool


LOSS = {"loss": np.zeros((), np.float32)}


def test_append_read_recover(tmp_path):
    path = tmp_path / "m"
    append_metrics(path, 0, {"loss": np.arange(3.0)})
    append_metrics(path, 3, {"loss": np.arange(3.0, 5.0)}, sync=True)
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    np.testing.assert_array_equal(read_metrics(path)["loss"], np.arange(5.0))
    np.testing.assert_array_equal(read_metrics(path, 2)["loss"], [0.0, 1.0])
    np.testing.assert_array_equal(recover_metrics(path, 4, LOSS)["loss"], np.arange(4, dtype=np.float32))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="holds 4 steps, expected 5; pass --out"):
        read_metrics(path, 5)


@pytest.mark.parametrize("line", ["torn", '{"step": 7, "loss": 1.0}', '{"step": 1, "other": 1.0}', "[]"])
def test_a_damaged_row_is_named(tmp_path, line):
    (tmp_path / "m").write_text(f'{{"step": 0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(ValueError, match="is damaged at line 2"):
        read_metrics(tmp_path / "m")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ({2: b"torn"}, "steps 2 are"),
        ({1: b"\xff\xfe", 2: b'{"step": 2, "loss": [1.0, 2.0], "n": 2}'}, "steps 1 to 2 are"),
        ({0: b'{"step": 9, "loss": 1.0, "n": 2}', 3: b'{"step": 3, "loss": 1.0}'}, "steps 0, 3 are"),
        ({0: b'{"step": true, "loss": 1.0, "n": 2}', 4: b"[" * 100_000}, "steps 0, 4 are"),
        ({3: b'{"step": 3, "loss": "nan", "n": {}}'}, "steps 3 are"),
        ({1: b'{"step": 1, "loss": 1.0, "n": 99999999999999999999}'}, "steps 1 are"),
        ({2: b'{"step": 2, "loss": 1, "n": 2.5}'}, "steps 2 are"),
    ],
)
def test_lost_metrics_are_nan_and_the_others_come_back(tmp_path, rows, lost):
    path, kinds = tmp_path / "m", LOSS | {"n": np.zeros((), np.int32)}
    append_metrics(path, 0, {"loss": np.arange(6, dtype=np.float32), "n": np.arange(6, dtype=np.int32)})
    lines = path.read_bytes().split(b"\n")
    for at, line in rows.items():
        lines[at] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match=lost):
        got = recover_metrics(path, 5, kinds)
    assert got["n"].dtype == np.float64
    expected = np.arange(5.0)
    expected[list(rows)] = np.nan
    np.testing.assert_array_equal(got["loss"], expected.astype(np.float32))
    np.testing.assert_array_equal(got["n"], expected)
    assert [row["step"] for row in lines_of(path)] == list(range(5))
    np.testing.assert_array_equal(read_metrics(path)["loss"], expected)
    again = recover_metrics(path, 5, kinds)  # a second continuation loses no more
    np.testing.assert_array_equal(again["loss"], expected.astype(np.float32))


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 4000])
def test_metrics_that_are_gone_are_all_nan(tmp_path, content):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.warns(UserWarning, match="m: the metrics of steps 0 to 2 are lost"):
        got = recover_metrics(tmp_path / "m", 3, LOSS)
    assert got["loss"].dtype == np.float32 and np.isnan(got["loss"]).all()
    assert lines_of(tmp_path / "m") == [{"step": i, "loss": None} for i in range(3)]


@pytest.mark.parametrize(
    "content", [b'{"step": 0, "loss": "x"}\n', b'{"step": 0, "loss": [[1], 2]}\n', b"\xff\n"]
)
def test_reading_what_is_damaged_names_the_file(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match="m is damaged"):
        read_metrics(tmp_path / "m")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "m").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '.*/m'"):
        append_metrics(tmp_path / "m", 0, {"loss": np.zeros(3)})


def test_the_peak_of_memory_is_the_process_own():
    """A child of a process that holds much does not count it; what it frees again is counted."""
    program = (
        "import numpy as np; from jaxrl_align.runtime import peak_memory\n"
        "before = peak_memory(); np.ones(50_000_000); print(before, peak_memory())"
    )
    held = np.ones(100_000_000)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert held.nbytes >= 8e8 and 3e8 < after - before < 4.5e8
    if sys.platform == "linux":
        assert after < 8e8


def test_only_what_is_shown_in_a_history_is_recovered(tmp_path):
    """A run whose metrics are gone goes on from its checkpoint, and ends in the same state."""
    whole, _ = run(count, jnp.float32(0), 12, chunk=4, progress=False)
    run(count, jnp.float32(0), 8, chunk=4, folder=open_run(tmp_path, {}), progress=False)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="the metrics of steps 0 to 7 are lost"):
        folder = open_run(tmp_path, {}, resume=True)
        state, history = run(count, jnp.float32(0), 12, chunk=4, folder=folder, progress=False)
    assert float(state) == float(whole)
    np.testing.assert_array_equal(history["loss"], [np.nan] * 8 + [8.0, 9.0, 10.0, 11.0])
    renamed = lambda state: (state + 1, {"other": state})
    with pytest.warns(UserWarning, match="the metrics of steps 0 to 11 are lost"):
        folder = open_run(tmp_path, {}, resume=True)
        _, history = run(renamed, jnp.float32(0), 16, chunk=4, folder=folder, progress=False)
    assert history.keys() == {"other"} and np.isnan(history["other"][:12]).all()
