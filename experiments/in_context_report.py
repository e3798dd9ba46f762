"""Tables and figure of `in_context.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from panels import save_panels

from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_text, share_text

SHOWN = (0, 1, 2, 3, 4, 6, 8, 11)
"""Numbers of examples that the tables show."""


def ours_first(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return readers' curves, the transformer's first: a jitted function returns a dict sorted by name."""
    return dict(sorted(rows.items(), key=lambda row: row[0] != "transformer"))


def print_rows(title: str, rows: Mapping[str, np.ndarray], spec: str, scale: float = 1.0) -> None:
    """Print curves [M, K] at some numbers of examples, with their intervals over seeds."""
    length = next(iter(rows.values())).shape[1]
    at = [k for k in SHOWN if k < length]
    print(f"\n{title}, by the number of examples before")
    print(f"  {'':22}" + "".join(f"{k:>16}" for k in at))
    for name, x in ours_first(rows).items():
        print(f"  {name:22}" + "".join(f"{mean_text(scale * x[:, k], spec):>16}" for k in at))


def report(config: Any, found: dict[str, Any]) -> None:
    """Print what each part came to, 95% t intervals over the seeds."""
    for world, rows in found.get("functions", {}).get("squared", {}).items():
        print_rows(f"functions {world}: squared error over d", rows, ".3f")
        best = rows["ridge, Bayes"]
        print_rows("  transformer less ridge", {"paired": rows["transformer"] - best}, "+.3f")
    if "words" in found:
        for tasks, rows in found["words"]["right"].items():
            print_rows(f"words, {tasks}: right labels [%]", rows, ".1f", 100.0)
        print("\nfine-tuned on examples of a held-out task instead, right labels [%]")
        for i, n in enumerate(config.tuned_examples):
            tried = ", ".join(
                f"{r:g}: {100 * x:.0f}"
                for r, x in zip(config.tuned_rates, found["words"]["tried"][i], strict=True)
            )
            print(f"  {n:5} examples  {mean_text(100 * found['words']['tuned'][:, i])}   rates {tried}")
    for task, rows in found.get("model", {}).items():
        print_model(config, task, rows)
    if "concepts" in found:
        for documents, rows in found["concepts"]["nats"].items():
            print_rows(f"{documents}: nats a symbol", rows, ".3f")
        print_rows("the true concept's posterior", {"exact": found["concepts"]["posterior"]}, ".3f")


def print_model(config: Any, task: str, rows: dict[str, Any]) -> None:
    """Print what the published model makes of a task, 95% t intervals over the draws of examples."""
    name = config.model or "SmolLM2-135M-Instruct"
    print(f"\n{task}, {name}: right answers [%] of {config.model_items}, by the number of examples")
    print(f"  {'':22}" + "".join(f"{k:>20}" for k in config.model_shots))
    for rule, x in rows["shown"].items():
        print(f"  {rule:22}" + "".join(f"{share_text(c):>20}" for c in np.array(x).T))
    gain = 100.0 * (np.array(rows["shown"]["calibrated"]) - np.array(rows["shown"]["raw"]))
    print(f"  {'calibrated less raw':22}" + "".join(f"{mean_text(c, '+.1f'):>20}" for c in gain.T))
    for rate, x in rows["tuned"].items():
        print(
            f"  a LoRA of rank 8 on the same {max(config.model_shots)} instead, rate {rate}: {share_text(x)}"
        )


def draw(folder: RunFolder, config: Any, found: dict[str, Any]) -> None:
    """Write in_context.png: a panel for each world."""
    panels: dict[str, Any] = {}
    curves = lambda rows, scale=1.0: {
        name: (np.arange(x.shape[1]), scale * x.T) for name, x in ours_first(rows).items()
    }
    for world, rows in found.get("functions", {}).get("squared", {}).items():
        # Least squares alone has no bound where as many noisy pairs as dimensions are nearly dependent.
        exact = "ridge, Bayes" if "with noise" in world else "least squares"
        panels[f"squared error / d, {world}"] = curves({n: rows[n] for n in ("transformer", exact)})
    if "words" in found:
        rows = found["words"]["right"]["held-out tasks"]
        shown = {name: rows[name] for name in ("transformer", "Bayes, any task")}
        panels["right labels, held-out tasks [%]"] = curves(shown, 100.0) | {
            "fine-tuned instead": (
                np.array(config.tuned_examples)[:3],
                100.0 * found["words"]["tuned"].T[:3],
            ),
            "transformer, known tasks": curves(found["words"]["right"]["known tasks"], 100.0)["transformer"],
        }
    for task, rows in found.get("model", {}).items():
        at = np.array(config.model_shots)
        panels[f"{task}, published model [%]"] = {
            rule: (at, 100.0 * np.array(x).T) for rule, x in rows["shown"].items()
        } | {f"LoRA, rate {rate}": (at[-1:], 100.0 * np.array(x)[None]) for rate, x in rows["tuned"].items()}
    for documents, rows in found.get("concepts", {}).get("nats", {}).items():
        told = np.array(rows["told the concept"])
        above = {name: np.array(x) - told for name, x in rows.items() if name != "told the concept"}
        panels[f"nats above the told, {documents}"] = curves(above)
    save_panels(
        folder.path / "in_context.png",
        "examples in the context",
        panels,
        title="in-context learning, no update; 95%",
        columns=min(2, len(panels)),
        bounds={label: (0.0, 100.0) for label in panels if "[%]" in label},
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
