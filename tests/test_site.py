"""The site: the code of its pages runs, their names exist, equations are MathML, and it builds."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxrl_align.cli import run_command
from tests.test_lectures import exists

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODEL = "models/smollm2-135m-instruct"
sys.path.insert(0, str(DOCS / "tools"))


def blocks(text, language="python"):
    """Return a page's code, also that which is indented in a tab."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return ["\n".join(line[len(indent) :] for line in code.splitlines()) for indent, code in found]


def run_blocks(codes, names=None):
    """Run a page's code from the top; return what it defined."""
    names = {} if names is None else names
    with jax.numpy_rank_promotion("allow"):  # users run it without this suite's strictness
        for code in codes:
            if "import equinox" in code:
                pytest.importorskip("equinox")
            exec(compile(code, "page", "exec"), names)
    return names


def test_a_page_finds_its_code():
    assert blocks("a\n```python\nx = 1\n```\n    ```python\n    y = 2\n    ```\n") == ["x = 1", "y = 2"]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index", "tutorials/compose_a_loss"])
def test_code_of_a_page_runs(page, capsys):
    run_blocks(blocks((DOCS / f"{page}.md").read_text(encoding="utf-8")))
    assert (printed := capsys.readouterr().out) and "nan" not in printed


@pytest.mark.slow
def test_the_new_environment_is_learnt_kept_and_played(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(blocks((DOCS / "tutorials" / "new_environment.md").read_text(encoding="utf-8")))
    random, thermostat = map(float, capsys.readouterr().out.split()[:2])
    assert random < thermostat / 2
    assert float(names["metrics"]["episode_return_last100"][:, -1].min()) > random + 5
    assert names["episodes"].finished.all() and float(names["episodes"].episode_return.mean()) > random + 5


@pytest.mark.slow
def test_the_new_reward_is_learnt():
    names = run_blocks(blocks((DOCS / "tutorials" / "new_reward.md").read_text(encoding="utf-8")))
    assert names["history"][0] < 0.1 and names["history"][-1] > 0.5
    assert names["ends_with_a_number"](["a"] * 2, ["x 1 ", "y"]) == [1.0, 0.0]


@pytest.mark.slow
def test_the_sweep_is_of_64_runs():
    names = run_blocks(blocks((DOCS / "tutorials" / "sweep.md").read_text(encoding="utf-8")))
    assert names["returns"].shape == (4, 16) and names["best"] > 0


@pytest.mark.slow
def test_the_notebook_runs(capsys):
    cells = json.loads((DOCS / "tutorials" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names = run_blocks(["".join(c["source"]) for c in cells if c["cell_type"] == "code"])
    rewards = re.findall(r"reward ([\d.]+)", capsys.readouterr().out)
    assert float(rewards[-1]) > 1.5 * float(rewards[0])
    assert float(names["steps"].episode_return.max()) > 20


@pytest.mark.slow
def test_the_commands_that_align_a_model_run(tmp_path, monkeypatch, capsys):
    """As printed, but for the model, which is the page's tiny one, and the numbers of steps."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorials" / "align_your_model.md").read_text(encoding="utf-8")
    run_blocks(blocks(text))
    few = {"dpo": "--steps 2", "reward": "--steps 2", "generate": "--tokens 4"}
    few["grpo"] = "--steps 2 --response-length 4 --group-size 2 --batch-size 2"
    few["evaluate"] = "--limit 4"
    commands = [shlex.split(line) for block in blocks(text, "sh") for line in block.splitlines()]
    assert [words[1] for words in commands] == ["dpo", "reward", "grpo", "generate", "merge", "evaluate"]
    assert all("--chat" in words for words in commands if "--data" in words)
    for words in commands:
        shorter = shlex.split(few.get(words[1], ""))
        run_command([word.replace(MODEL, "tiny") for word in words[1:]] + shorter)
    assert (tmp_path / "merged" / "config.json").exists() and (tmp_path / "answers.jsonl").exists()


def test_what_pages_name_exists():
    """Dotted names of rooms in the pages that say where things are."""
    rooms = "losses|nets|data|feedback|envs|text|actors|rl|pretrain|align|evaluate|runtime|learner|types"
    found = []
    tutorials = [f"tutorials/{path.stem}" for path in DOCS.glob("tutorials/*.md")]
    for page in ["index", "concepts", "migration", "peers", *tutorials]:
        prose = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            found += [(page, name) for name in re.findall(rf"^(?:{rooms})(?:\.\w+)+", code)]
    assert len(found) > 30
    assert [(page, name) for page, name in found if not exists(name)] == []


@pytest.fixture(scope="module")
def equations():
    pytest.importorskip("latex2mathml", reason="needs the extra `docs`")
    return importlib.import_module("equations")


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("G_{t-1} = r_t + discount_t G_t", r"G _{t - 1} = r _{t} + \mathrm{discount} _{t} \, G _{t}"),
        ("y - q_tm1[a_tm1]", "y - q _{t - 1} [ a _{t - 1} ]"),
        ("-sum_a log p_a,   p = std(x)", r"- \sum _{a} \log \, p _{a} , \qquad p = \mathrm{std} ( x )"),
        ("log pi_old_t", r"\log \, \pi _{\mathrm{old}, t}"),
        ("k3 <- (x^2 + 1e-4)^(1 / n)", r"k _{3} \leftarrow ( x ^{2} + 10^{-4} ) ^{1 / n}"),
        ("2 if a >= b, clip_high", r"2 \ \mathrm{if} \, a \ge b , \mathrm{clip\_high}"),
        ("G^n_{t-1} || {a}", r"G ^{n} _{t - 1} \parallel \{ a \}"),
    ],
)  # fmt: skip
def test_plain_equations_as_tex(equations, text, tex):
    assert " ".join(equations.to_tex(text).split()) == " ".join(tex.split())
    assert equations.to_mathml(text).startswith("<math")


def test_equations_are_told_from_code(equations):
    for text in (
        "    r_t + gamma max_a q_t[a]",
        "    -log sigma(d) - eps log p",
        "    (R - mean(R)) / std(R)",
    ):
        assert equations.is_equation(text), text
    code = ["    state = learner.init(key)", "    python -m x --a b", "    x = 3", "    a, b = f(k, rank=8)"]
    for text in [*code, '    {"a": 1}', "    raw          l_i = log p(i)", "    from a import b"]:
        assert not equations.is_equation(text), text


def test_a_docstring_keeps_all_but_its_equations(equations):
    text = "Sum.\n\n    y = r_t + gamma v\n\nArgs:\n  x: a b,\n    c_d e f\n\nSource: A.\n"
    lines = equations.with_equations(text).splitlines()
    assert lines[0] == "Sum." and lines[2].startswith("<math")
    assert "    c_d e f" in lines and "Source: A." in lines


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "losses" / "index.html").read_text(encoding="utf-8")
    assert reference.count("<math") > 50 and 'id="jaxrl_align.losses.gae"' in reference
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', text), (
            f"{page} loads from elsewhere"
        )
