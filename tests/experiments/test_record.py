"""Results of record: what is printed is what their files say, and nothing outlives its code."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.experiments.loading import load

record, pages, age = load("record"), load("record_pages"), load("record_age")
ROOT = Path(__file__).parents[2]
RESULTS = pages.read_results(ROOT)
INTERVAL = {"value": 1.5, "low": 1.25, "high": 1.75, "kind": "t"}
RUN = {"command": "python experiments/ice.py --seeds 3", "seeds": 3, "seconds": 90.0, "cpu_seconds": 150.0}
RUN |= {
    "continued": False,
    "machine": "Linux, 2 cores",
    "versions": {"python": "3.12", "jax": "1", "flax": None},
}
RESULT = {
    "claim": "Ice floats.",
    "rows": ["A1", "B16"],
    "verdict": "holds in part",
    "checks": {"it floats": True, "it sinks | never": False},
    "headline": {"gain [m]": INTERVAL},
    "baselines": {"gain of stones [m]": INTERVAL | {"value": None, "kind": "none"}},
    "tables": {"seas": {"north": {"depth | mean": INTERVAL, "count": 3}, "south": {"count": 2}}},
    "notes": ["it is cold"],
    "figures": ["ice.png", "ice_2.png"],
    "run": RUN | {"commit": "0123456789abcdef"},
}


def git(root, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(("git", *author, "-C", root, *words), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_nothing_is_printed_that_is_not_in_the_results():
    """`make results` mends it."""
    for path, text in pages.pages(ROOT, RESULTS).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.relative_to(ROOT)} is not what its results say"
        )
    kept = {path.stem for path in (ROOT / "docs" / "results").glob("*.md")} - {"README"}
    assert kept == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_record_is_whole(name):
    result = RESULTS[name]
    assert result.keys() == RESULT.keys() and result["run"].keys() == RESULT["run"].keys()
    assert result["verdict"] == record_verdict(result["checks"]) and result["headline"]
    assert re.fullmatch("[0-9a-f]{40}", result["run"]["commit"])
    assert (ROOT / record.script_of(result)).is_file()
    rows = (ROOT / "docs" / "lectures.md").read_text(encoding="utf-8")
    assert [row for row in result["rows"] if f'<a id="{row.lower()}">' not in rows] == []
    assert [f for f in result["figures"] if not (ROOT / "docs" / "results" / f).is_file()] == []


def record_verdict(checks):
    held = sum(checks.values())
    return "holds" if held == len(checks) else "holds in part" if held else "does not hold"


def test_no_result_is_older_than_a_release():
    """A release re-measures what its code has changed since."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    earlier = {n: r for n, r in RESULTS.items() if r["run"]["versions"]["jaxrl_align"] != version}
    assert record.ages(earlier, ROOT) == {}


TOOLS = {"complete", "import_gguf", "qlora_step", "record"}
"""Scripts that show nothing of their own."""
SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "cli.main(Config, main)" in path.read_text(encoding="utf-8") and path.stem not in TOOLS
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_experiment_says_what_it_is_to_show_and_holds_no_number(name):
    module = load(name)
    printed = (ROOT / "docs" / "lectures.md").read_text(encoding="utf-8")
    for claim in [module.CLAIM] if hasattr(module, "CLAIM") else module.CLAIMS.values():
        assert len(claim.text) > 30 and claim.text.endswith(".") and 0 < claim.minutes <= 150
        assert [row for row in claim.rows if f'<a id="{row.lower()}">' not in printed] == []
    found = re.findall(r"\+- ?\d|\[[-+\d.]+, [-+\d.]+\]|Measured \(", module.__doc__)
    assert not found, f"{name}'s docstring prints {found}, which its result of record should"


def test_a_page_says_all_that_its_result_does():
    text = pages.page_text("ice_age", RESULT)
    lines = text.splitlines()
    assert lines[0] == "# ice age" and "**It holds in part.**" in lines
    assert "(lectures: [A1](../lectures.md#a1), [B16](../lectures.md#b16)). Ice floats." in text
    assert "- yes: it floats" in lines and "- **no**: it sinks | never" in lines and "- it is cold" in lines
    assert (
        "| gain [m] | 1.5 [1.2, 1.8] |" in lines and "| gain of stones [m] (baseline) | undefined |" in lines
    )
    assert "![ice age](ice.png)" in lines and "![ice age](ice_2.png)" in lines
    assert "| &nbsp; | depth \\| mean | count |" in lines and "|---|---:|---:|" in lines
    assert "| north | 1.5 [1.2, 1.8] | 3 |" in lines and "| south | &nbsp; | 2 |" in lines
    assert "python experiments/ice.py --seeds 3" in lines and "Versions: python 3.12, jax 1." in lines
    assert "3 seeds; 1.5 minutes (2.5 of CPU time) on Linux, 2 cores; commit `0123456789ab`." in lines
    continued = pages.page_text("ice", RESULT | {"run": RESULT["run"] | {"continued": True, "seeds": 1}})
    assert "1 seed; 1.5 minutes of the last part of a continued run" in continued


def test_tiles_stand_between_their_marks_and_verdicts_in_their_rows():
    page = f"a\n{pages.BEGIN}\nearlier\n{pages.END}\nb\n"
    how = {"to_results": "r", "figure": "<{png} {page} {name}>"}
    name = pages.TILES[0]
    made = pages.with_tiles(page, {name: RESULT, "other": RESULT}, **how)
    assert made.startswith(f"a\n{pages.BEGIN}\n") and made.endswith(f"{pages.END}\nb\n")
    assert "earlier" not in made and made.count("It **holds in part**") == 1
    assert f"| <r/ice.png r/{name}.md {name}> | Ice floats. | [It" in made
    assert f"](r/{name}.md). gain [m]: 1.5 [1.2, 1.8] |" in made
    assert pages.with_tiles(made, {name: RESULT}, **how) == made
    with pytest.raises(ValueError, match="the page must hold the lines"):
        pages.with_tiles("a", {}, **how)
    rows = '| <a id="a1"></a>A1 | `x \\| y` | old |\n| <a id="a2"></a>A2 | b | old |\n| A1 | x | old |\n'
    made = pages.with_verdicts(rows, {"ice": RESULT, "fire": RESULT | {"verdict": "does not hold"}})
    assert made.splitlines() == [
        '| <a id="a1"></a>A1 | `x \\| y` | [in part](results/ice.md), [no](results/fire.md) |',
        '| <a id="a2"></a>A2 | b | - |',
        "| A1 | x | old |",
    ]


def test_files_behind_a_script_are_followed(tmp_path):
    files = {
        "jaxrl_align/__init__.py": "from jaxrl_align import nets\n",
        "jaxrl_align/nets/__init__.py": "from jaxrl_align.nets.mlp import f\n"
        "from jaxrl_align.nets.big import h\n",
        "jaxrl_align/nets/mlp.py": "import jax\ndef g():\n    from jaxrl_align.late import x\n",
        "jaxrl_align/nets/big.py": "",
        "jaxrl_align/late.py": "",
        "jaxrl_align/own/__init__.py": "VALUE = 1\n",
        "jaxrl_align/own/part.py": "",
        "jaxrl_align/own/other.py": "",
        "experiments/helper.py": "",
        "experiments/other.py": "",
        "experiments/ice.py": "import os\nimport helper\nfrom jaxrl_align import nets as n, own\n"
        "from jaxrl_align.own import part\nprint(n.f, own.VALUE)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = age.files_behind(tmp_path / "experiments" / "ice.py", tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        "experiments/ice.py",
        "experiments/helper.py",
        "jaxrl_align/nets/mlp.py",
        "jaxrl_align/late.py",
        "jaxrl_align/own/__init__.py",
        "jaxrl_align/own/part.py",
    }


def test_files_behind_real_experiments():
    behind = {
        p.relative_to(ROOT).as_posix() for p in age.files_behind(ROOT / "experiments" / "trust_regions.py")
    }
    used = ["rl/trpo", "rl/actor_critic", "losses/returns", "envs/rollout", "learner", "runtime/statistics"]
    assert {f"jaxrl_align/{name}.py" for name in used} <= behind
    assert not any(name in path for path in behind for name in ("n/cli/", "n/align/", "huggingface", "dqn"))


def test_code_is_told_from_its_comments():
    old = '"""A."""\n\ndef f(x):\n    """B."""\n    return x  # c\n'
    assert age.same_code(old, 'def f(x):\n    """Other."""\n    return (x)\n')
    assert not age.same_code(old, old.replace("return x", "return -x"))
    assert not age.same_code('X = "a"\n', 'X = "b"\n')


@pytest.fixture
def house(tmp_path):
    """A repository with an experiment, and a run of it at the first commit."""
    root = tmp_path / "house"
    (root / "experiments").mkdir(parents=True)
    (root / "docs").mkdir()
    for path in pages.TILED:
        (root / path).write_text(f"{pages.BEGIN}\n{pages.END}\n", encoding="utf-8")
    (root / "docs" / "lectures.md").write_text('| <a id="a1"></a>A1 | x | - |\n', encoding="utf-8")
    (root / "experiments" / "ice.py").write_text("import water\n", encoding="utf-8")
    (root / "experiments" / "water.py").write_text("A = 1\n", encoding="utf-8")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "a")
    run = tmp_path / "run"
    run.mkdir()
    result = RESULT | {
        "figures": ["x.png", "y.png", "z.png"],
        "run": RUN | {"commit": git(root, "rev-parse", "HEAD")},
    }
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    for name in result["figures"]:
        (run / name).write_text(name, encoding="utf-8")
    return root, run


def test_a_run_is_taken_and_grows_old_with_its_code(house, capsys):
    root, run = house
    record.main(record.Config(runs=(str(run),), root=str(root)))
    kept = root / "docs" / "results"
    assert sorted(path.name for path in kept.iterdir()) == [
        "README.md",
        "ice.json",
        "ice.md",
        "ice.png",
        "ice_2.png",
    ]
    assert (kept / "ice_2.png").read_text(encoding="utf-8") == "y.png"
    assert json.loads((kept / "ice.json").read_text(encoding="utf-8"))["figures"] == ["ice.png", "ice_2.png"]
    assert "[in part](results/ice.md)" in (root / "docs" / "lectures.md").read_text(encoding="utf-8")
    assert "older" not in capsys.readouterr().out
    water = root / "experiments" / "water.py"
    water.write_text("# of the sea\nA = 1\n", encoding="utf-8")
    record.main(record.Config(root=str(root)))
    assert "older" not in capsys.readouterr().out
    water.write_text("A = 2\n", encoding="utf-8")
    record.main(record.Config(root=str(root)))
    assert "ice is older than experiments/water.py" in capsys.readouterr().out


def test_a_second_result_has_a_name_of_its_own(house):
    root, run = house
    record.main(record.Config(runs=(str(run),), root=str(root)))
    record.main(record.Config(runs=(str(run),), name="ice_modern", root=str(root)))
    record.main(record.Config(runs=(str(run),), root=str(root)))  # again: the other's figures stay
    kept = sorted(path.name for path in (root / "docs" / "results").glob("*.png"))
    assert kept == ["ice.png", "ice_2.png", "ice_modern.png", "ice_modern_2.png"]


def test_what_cannot_be_taken_is_refused(house):
    root, run = house
    with pytest.raises(ValueError, match="none has no result.json; let the run end first"):
        record.main(record.Config(runs=(str(run.parent / "none"),), root=str(root)))
    with pytest.raises(ValueError, match="--name is of one run; got 0 runs"):
        record.main(record.Config(name="a", root=str(root)))
    with pytest.raises(ValueError, match="letters, digits and _, got '../a'"):
        record.main(record.Config(runs=(str(run),), name="../a", root=str(root)))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["run"]["commit"] += "+"
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(ValueError, match="code that no commit holds"):
        record.main(record.Config(runs=(str(run),), root=str(root)))
    assert not (root / "docs" / "results").exists()
    result["run"]["commit"] = "f" * 40
    with pytest.raises(ValueError, match="the repository has no commit f+; fetch its history"):
        record.ages({"ice": result}, root)
