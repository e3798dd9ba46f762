import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime.metrics import append_metrics, cut_metrics, read_metrics


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


def test_append_read_cut(tmp_path):
    path = tmp_path / "m"
    cut_metrics(path, 3)
    append_metrics(path, 0, {"loss": np.arange(3.0)})
    append_metrics(path, 3, {"loss": np.arange(3.0, 5.0)}, sync=True)
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    np.testing.assert_array_equal(read_metrics(path)["loss"], np.arange(5.0))
    np.testing.assert_array_equal(read_metrics(path, 2)["loss"], [0.0, 1.0])
    cut_metrics(path, 4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="holds 4 steps, expected 5; pass --out"):
        read_metrics(path, 5)


@pytest.mark.parametrize("line", ["torn", '{"step": 7, "loss": 1.0}', '{"step": 1, "other": 1.0}', "[]"])
def test_a_damaged_row_is_named(tmp_path, line):
    (tmp_path / "m").write_text(f'{{"step": 0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(ValueError, match="is damaged at line 2"):
        read_metrics(tmp_path / "m")


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
