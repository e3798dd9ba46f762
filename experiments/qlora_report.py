"""What `qlora_memory.py` reports: bytes of every way, errors and losses of every packing, the contests."""

from typing import Any

import numpy as np
import qlora_quality as quality

from jaxrl_align import runtime
from jaxrl_align.runtime import Claim, RunFolder, plots

PARTS = ("weights", "optimiser", "gradients", "activations")
PUBLISHED_GB = {"full": 780, "QLoRA bf16": 48}
"""More than, and less than, at 65 billion weights (Dettmers et al. 2023)."""
GB = 1e9
MB = 1e6


def draw(path: Any, memory: dict[str, Any], larger: dict[str, Any]) -> None:
    """Draw stacked bars: measured on the published model, and of the compiled step at 65B."""
    fig, (left, right) = plots.panels(1, 2, size=(10, 4))
    left.set(ylabel="MB", title="measured step")
    right.set(ylabel="GB", title="compiled for Llama 65B, 1 x 512 tokens")
    at_65b = {way: sizes["65B"] for way, sizes in larger.items()}
    for ax, rows, unit in ((left, memory, 1e6), (right, at_65b, GB)):
        bottom = np.zeros(len(rows))
        for i, part in enumerate(PARTS):
            height = np.array([row[part] for row in rows.values()]) / unit
            ax.bar(list(rows), height, bottom=bottom, label=part, **plots.bar_look(i))
            bottom += height
        ax.tick_params(axis="x", labelsize=8)
    resident = [(row["resident"] - row["empty process"]) / 1e6 for row in memory.values()]
    left.plot(
        list(memory),
        resident,
        "_",
        color="black",
        markersize=24,
        label="peak of the process, less an empty one",
    )
    for way, level in PUBLISHED_GB.items():
        right.axhline(level, color="#777777", linestyle=":")
        right.text(
            2.4,
            level,
            f"published {'>' if way == 'full' else '<'} {level}",
            ha="right",
            va="bottom",
            fontsize=8,
        )
    left.legend(fontsize=8)
    plots.save_figure(fig, path)


def memory_table(memory: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the megabytes of each way's step, and of the file that a task leaves behind."""
    table = {}
    for way, row in memory.items():
        cells = {name: row[name] / MB for name in PARTS}
        cells |= {"compiled: arguments": row["arguments"] / MB, "temporaries": row["temporaries"] / MB}
        cells["peak of the process"] = (row["resident"] - row["empty process"]) / MB
        table[way] = {name: f"{x:,.0f}" for name, x in cells.items()} | {"file": f"{row['stored'] / MB:,.1f}"}
    return table


def larger_table(larger: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the gigabytes of each way at each size, compiled and not run."""
    table = {}
    for way, sizes in larger.items():
        for size, row in sizes.items():
            cells = {name: row[name] / GB for name in PARTS}
            cells["in all"] = in_all(row)
            table[f"{way} at {size}"] = {name: f"{x:,.1f}" for name, x in cells.items()}
    return table


def in_all(row: dict[str, int]) -> float:
    """Return the gigabytes of all parts of a step."""
    return sum(row[name] for name in PARTS) / GB


def added_loss(found: dict[str, Any], how: str, than: str = "plain") -> runtime.Interval:
    """Return what a packing adds to the loss on held-out windows, in nats a token, paired by window."""
    return runtime.paired_interval(found["losses"][how], found["losses"][than])


def quality_table(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each packing's error and what it adds to the loss, than plain weights and than NF4."""
    return {
        how: {
            "error of the kernels [sigma]": error,
            "loss - plain": added_loss(found, how),
            "- NF4": "" if how == "NF4" else added_loss(found, how, "NF4"),
        }
        for how, error in found["kernel errors"].items()
    }


def contest_table(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return LoRA's and QLoRA's results in each contest that was held, and the test that they are equal."""
    table = {}
    for name in ("text", "trec"):
        if name in found:
            rows, result = found[name], quality.judge(found[name], found[name]["margin"])
            ours, theirs = (np.array(rows[way]["test"])[rows[way]["rate"]] for way in ("QLoRA", "LoRA"))
            table[name] = {
                "LoRA": runtime.t_interval(theirs),
                "QLoRA": runtime.t_interval(ours),
                "QLoRA - LoRA": runtime.paired_interval(ours, theirs),
                "margin": result.margin,
                "p": result.p,
            }
    return table


def judge_memory(memory: dict[str, Any], larger: dict[str, Any]) -> dict[str, bool]:
    """Return which parts of the claim the bytes show, of the ways that were measured."""
    full, checks = memory["full"], {}
    checks["full fine-tuning leaves a file of the model's size for a task, to 1%"] = (
        abs(full["stored"] / full["weights"] - 1) < 0.01
    )
    if "LoRA" in memory:
        checks["LoRA's is a tenth of it at most"] = memory["LoRA"]["stored"] < 0.1 * full["stored"]
    checks["its compiled step takes weights and two moments, 12 bytes a weight to 1%, as arguments"] = (
        abs(full["arguments"] / (3 * full["weights"]) - 1) < 0.01
    )
    checks["and holds gradients, 4 bytes a weight at least, beside them"] = (
        full["temporaries"] >= full["weights"]
    )
    peak = full["resident"] - full["empty process"]
    checks["its process holds 16 bytes a weight at least at its peak"] = peak >= 4 * full["weights"]
    at_65b = {way: in_all(sizes["65B"]) for way, sizes in larger.items()}
    checks[f"full fine-tuning at 65 billion weights needs more than {PUBLISHED_GB['full']} GB"] = (
        at_65b["full"] > PUBLISHED_GB["full"]
    )
    offloaded = at_65b["QLoRA bf16"] - larger["QLoRA bf16"]["65B"]["optimiser"] / GB
    less = f"less than {PUBLISHED_GB['QLoRA bf16']}"
    checks[f"QLoRA needs {less}"] = at_65b["QLoRA bf16"] < PUBLISHED_GB["QLoRA bf16"]
    checks[f"QLoRA needs {less} with the optimiser's state on the host"] = (
        offloaded < PUBLISHED_GB["QLoRA bf16"]
    )
    return checks


def judge_quality(model: dict[str, Any], small: dict[str, Any]) -> dict[str, bool]:
    """Return which parts of the claim losses of the published model and contests on the small one show."""
    checks = {
        f"NF4 adds less to the loss of the published model than {how}": added_loss(model, how, "NF4").low > 0
        for how in ("FP4", "Int4")
    }
    checks["FP4 adds less than Int4"] = added_loss(model, "Int4", "FP4").low > 0
    for name, row in contest_table(small).items():
        checks[f"QLoRA is equal to LoRA within the margin: {name}"] = row["p"] < 0.05
    return checks


def report(folder: RunFolder, config: Any, claim: Claim, found: dict[str, Any]) -> None:
    """Draw the memory and write the result."""
    memory, larger, figure = found["memory"], found["larger"], "qlora_memory.png"
    draw(folder.path / figure, memory, larger)
    tables = {
        f"one step on {config.rows} x {config.length} tokens [MB]": memory_table(memory),
        "a step on 1 x 512 tokens, compiled and not run [GB]": larger_table(larger),
    }
    whose = {"model": "the published model", "small": "a small model of our own"}
    for who, name in whose.items():
        tables[f"{name}: packed weights, loss [nats a token]"] = quality_table(found[who])
        if contests := contest_table(found[who]):
            tables[f"{name}: text [nats a token], trec [%]"] = contests
    gaussian = found["gaussian errors"]
    tables["error of Gaussian weights [sigma]"] = {how: {"": x} for how, x in gaussian.items()}
    ratio = lambda way, name: runtime.Interval(memory[way][name] / memory["full"]["weights"], *NO_INTERVAL)
    last = "QLoRA" if "QLoRA" in memory else "full"
    runtime.write_result(
        folder,
        config,
        claim,
        headline={
            f"file that {last} leaves for a task, as a share of the weights' bytes": ratio(last, "stored")
        },
        baselines={"the same of full fine-tuning": ratio("full", "stored")},
        checks=judge_memory(memory, larger) | judge_quality(found["model"], found["small"]),
        tables=tables,
        figures=[figure],
    )


NO_INTERVAL = (np.nan, np.nan, "none")
"""Of a number that is the same in every run."""


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("qlora_memory")
