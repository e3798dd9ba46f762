"""Accuracy, forgetting and bytes a task of the ways of tuning, against the number of trained weights.

Claims (lecture 002: D1 to D5, D11, D12): to train a part forgets less of what pre-training taught, a task
then costs few weights, and prompt tuning is behind in small models (published: up to about 10 billion
weights).

The class is a word that the model's own head predicts as a row's last token (`peft_task.py`), so every way
trains its own leaves and no other; `head` is an untied copy of the embeddings. Equal budgets: all have the
same rows, 300 steps of 8, and four learning rates, of which each gets the smallest within a standard error
of its best on rows for validation. Forgetting is the change of the loss on books that are held out of
pre-training, with the part in place; what is laid beside the base can be taken off, and then nothing is
forgotten.

Measured (TREC, chance 17%: `python experiments/peft.py --tasks trec --lengths 28`; 174,000 weights,
pre-trained on 1.5 million tokens, untuned 14.0% and 4.267 nats a token; 4 seeds of the tuning, of one
pre-trained model; 95% t intervals, paired where they are differences; two busy shared CPU cores, 16 min):

                  trained      kB  rate   accuracy [%]      - full           forgetting [nats]  - full
    full          173,824   695.3  1e-3   69.7 +-  3.7                       +0.88 +- 0.12
    LoRA 64       147,456   589.8  1e-3   39.2 +-  8.1   -30.5 +- 10.5       +0.36 +- 0.08   -0.52 +- 0.13
    head           65,536   262.1  1e-1   41.4 +- 10.1   -28.2 +-  9.8      +10.35 +- 0.60   +9.47 +- 0.63
    top layer      49,984   199.9  5e-3   47.7 +-  2.6   -22.0 +-  5.2       +0.98 +- 0.23   +0.10 +- 0.31
    DoRA 4         10,368    41.5  5e-3   36.7 +-  1.1   -33.0 +-  2.7       +0.45 +- 0.12   -0.43 +- 0.22
    LoRA 4          9,216    36.9  5e-3   35.9 +-  1.1   -33.8 +-  3.3       +0.54 +- 0.10   -0.34 +- 0.20
    adapters        8,512    34.0  5e-3   34.8 +- 11.0   -34.9 +- 11.2       +0.86 +- 0.11   -0.02 +- 0.03
    prefix          5,120    20.5  1e-1   33.6 +-  7.9   -36.1 +-  9.5       +1.03 +- 0.08   +0.15 +- 0.13
    LoRA 1          2,304     9.2  2e-2   37.2 +- 14.0   -32.4 +- 15.7       +1.59 +- 0.71   +0.71 +- 0.61
    biases          1,472     5.9  5e-3   18.2 +-  2.8   -51.4 +-  6.3       +1.34 +- 0.08   +0.46 +- 0.19
    prompt          1,280     5.1  1e-3   14.0 +-  0.0   -55.7 +-  3.7       +0.21 +- 0.03   -0.66 +- 0.12
    random prompt   1,280     5.1  1e-3   14.0 +-  0.0   -55.7 +-  3.7       +0.11 +- 0.00   -0.76 +- 0.12
    IA3               768     3.1  1e-1   29.4 +-  1.4   -40.3 +-  4.8       +1.43 +- 0.12   +0.55 +- 0.18
    norms             640     2.6  1e-1   36.7 +-  8.9   -33.0 +-  8.6       +8.88 +- 0.44   +8.00 +- 0.35

What holds: a task costs 3 to 590 kB instead of 695. Prompt tuning is behind all others: at no rate does it
answer with more than about one class. At equal rates forgetting rises with the trained weights (rank
correlation .48 +- .03, .60 +- .02, .60 +- .02, .42 +- .05 at the four rates). What does not hold: at the
rate that each needs, few weights do not forget less (-.13 +- .04). They must move far: norms and head forget
most of all, and full fine-tuning at 1e-3 no more than adapters, while it learns twice as much. The rate
decides: full at 5e-3, level on the validation rows (63.7% against 63.1), forgets 8.1 nats. And no part comes
near full fine-tuning, as they do on large models: over frozen embeddings and a frozen last norm the loss on
the training rows stays above ln 6 (LoRA at best 2.36, the top layer 2.27, full .89), so that they have not
even learnt which words are answers. (The rule of one standard error was made after full fine-tuning's first
results; by the best validation alone full has 70.6% and +8.1, biases 20.9% and +5.0, the prompts 15%, and
the others are as they are.)

SST-2, chance 50% (`--tasks sst2 --lengths 40 --ways full "LoRA 4" prompt`; untuned 51.7%), where the order
holds at every rate, of little learnt:

    full          173,824   695.3  1e-3   60.4 +-  3.5                       +1.28 +- 0.24
    LoRA 4          9,216    36.9  5e-3   53.7 +-  2.0    -6.7 +-  2.1       +0.79 +- 0.16   -0.49 +- 0.26
    prompt          1,280     5.1  1e-3   51.7 +-  0.0    -8.6 +-  3.5       +0.10 +- 0.03   -1.18 +- 0.26

SmolLM2-135M-Instruct, one seed, 24 steps, rates 1e-4 to 1e-1, 60 rows for validation and 150 for the test
(`--model models/smollm2-135m-instruct --tasks trec --lengths 24 --ways full norms "LoRA 4" --seeds 1 --steps
24 --rates 1e-4 1e-3 1e-2 1e-1 --validation-rows 60 --test-rows 150 --held-out-tokens 960`, 12 min; untuned
34.0%):

              trained        MB    rate   accuracy   forgetting   at the four rates: accuracy, forgetting
    full      134,515,008   538.1  1e-4    79.3%       +0.18      79.3 +0.2  40.7 +9.6  11.3 +22  12.0 +220
    LoRA 4      1,221,120     4.9  1e-3    44.0%       +0.08      34.0 +0.0  44.0 +0.1  52.0 +1.5  11.3 +38
    norms          35,136     0.1  1e-2    56.0%       +1.95      32.7 +0.0  42.7 +0.0  56.0 +2.0  14.0 +10

with the same order: LoRA forgets less than full fine-tuning and has learnt less in so few steps; norms need
a large rate and forget most. The standard error of these accuracies is 3 to 4 points. Prompt tuning was left
out for want of time, as were LoRA of rank 16, the other ways on SST-2 and more than one pre-trained model;
with two layers the top half is the top layer (`top half` comes with four).
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from peft_task import Base, BaseConfig, Task, make_accuracy, make_task, own_base, published_base
from peft_ways import Way, count, kind_of, make_ways, tune

from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import make_text_loss, sample_rows
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Params, TokenBatch

UNTUNED = "untuned"
WINDOW = 96
"""Tokens of the held-out text that are read at a time; virtual tokens must fit the context beside them."""
KINDS = ("full", "selective", "reparameterised", "additive")


@dataclass(frozen=True)
class Config(BaseConfig):
    """Every way has the same steps, batches, rows and learning rates to choose from."""

    out: str = "runs/peft"
    model: str | None = None
    """A local Hugging Face folder that is tuned instead, member after member."""
    ways: tuple[str, ...] = ()
    """Which; none means all."""
    ranks: tuple[int, ...] = (1, 4, 64)
    """Of LoRA."""
    tasks: tuple[str, ...] = ("trec", "sst2")
    """That are learnt, one by one."""
    lengths: tuple[int, ...] = (28, 40)
    """Tokens of a row, for each task; longer texts are cut."""
    steps: int = 300
    """Updates of each tuning."""
    batch_size: int = 8
    """Rows of an update."""
    rates: tuple[float, ...] = (1e-3, 5e-3, 2e-2, 1e-1)
    """Learning rates in rising order; each way's is chosen on the validation rows, see `choose`."""
    validation_rows: int = 200
    """Rows of a task by which the rate is chosen."""
    test_rows: int = 400
    """Rows of a task that accuracy is measured on."""


def make_measure(base: Base, task: Task, *parts: TokenBatch) -> Any:
    """Return `lm -> (params -> [accuracy on each part, nats a token on the held-out text])`."""

    def measure(lm: LanguageModel) -> Any:
        accuracy = make_accuracy(lm, task.words)
        text_loss = make_text_loss(lm, base.held_out, length=WINDOW, batch_size=8)

        def of(params: Params) -> jax.Array:
            nats, tokens = text_loss(params)
            return jnp.stack([*(accuracy(params, rows) for rows in parts), nats / tokens])

        return of

    return measure


def run_way(config: Config, base: Base, way: Way, task: Task) -> dict[str, Any]:
    """Tune by one way, every seed at every rate; return what it costs and what came out.

    Returns:
      `parameters`, `bytes`, and [rates, seeds] each: `validation` and `test` accuracy, `nats` a token on the
      held-out text, and `loss` over the last tenth of the steps.
    """
    sample = sample_rows(task.train, batch_size=config.batch_size)
    measure = make_measure(base, task, task.validation, task.test)
    found = tune(base, way, sample, measure, keys=config.keys(1), rates=config.rates, steps=config.steps)
    parameters, size = count(way, base.lm, base.params)
    sizes = {"parameters": parameters, "bytes": size}
    return sizes | dict(zip(("validation", "test", "nats", "loss"), found, strict=True))


def measure_untuned(base: Base, task: Task) -> dict[str, Any]:
    """Return the accuracy and the loss before any tuning."""
    test, nats = jax.jit(make_measure(base, task, task.test)(base.lm))(base.params)
    return {"test": float(test), "nats": float(nats)}


def choose(result: dict[str, Any], rows: int) -> int:
    """Return the index of the smallest rate within a standard error of the best on the validation rows.

    Rates that agree within the error of so few rows can forget very differently; what did not stay finite is
    out.

    Args:
      result: of `run_way`, with rates in rising order.
      rows: of the validation.
    """
    mean = np.where(np.isfinite(result["nats"]), result["validation"], -1.0).mean(1)
    best = mean.max()
    return int(np.flatnonzero(mean >= best - (best * (1 - best) / rows) ** 0.5)[0])


def chosen(results: dict[str, Any], rows: int) -> dict[str, dict[str, Any]]:
    """Return each way's accuracy [%] and forgetting [M] at its rate, the smallest way first."""
    before = results[UNTUNED]["nats"]
    found = {}
    for way, result in results.items():
        if way != UNTUNED:
            index = choose(result, rows)
            test, nats = (np.array(result[name][index], float) for name in ("test", "nats"))
            sizes = {name: result[name] for name in ("parameters", "bytes")}
            found[way] = sizes | {"rate": index, "accuracy": 100 * test, "forgetting": nats - before}
    return dict(sorted(found.items(), key=lambda item: item[1]["parameters"]))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation; ties share the mean of their ranks."""

    def rank(values: ArrayLike) -> np.ndarray:
        v = np.asarray(values)
        return (v[:, None] > v[None]).sum(1) + 0.5 * (v[:, None] == v[None]).sum(1)

    return float(np.corrcoef(rank(x), rank(y))[0, 1])


def report(config: Config, name: str, results: dict[str, Any]) -> dict[str, Any]:
    """Print a task's table and return its rows."""
    before, found = results[UNTUNED], chosen(results, config.validation_rows)
    print(f"\n{name}: untuned {100 * before['test']:.1f}%, {before['nats']:.3f} nats a token")
    print(f"{'':15}{'trained':>9}{'kB':>9}  {'rate':7}{'accuracy [%]':16}{'- full':16}", end="")
    print(f"{'forgetting':18}{'- full':18}validation [%] and forgetting at every rate")
    for way, row in found.items():
        result, full = results[way], found.get("full", row)
        line = f"{way:15}{row['parameters']:9,}{row['bytes'] / 1e3:9,.1f}  "
        line += f"{config.rates[row['rate']]:<7.0e}{statistics.mean_text(row['accuracy']):16}"
        line += f"{statistics.mean_text(row['accuracy'] - full['accuracy'], '+.1f'):16}"
        line += f"{statistics.mean_text(row['forgetting'], '+.3f'):18}"
        line += f"{statistics.mean_text(row['forgetting'] - full['forgetting'], '+.3f'):18}"
        validation = 100 * np.mean(result["validation"], 1)
        drift = np.mean(np.array(result["nats"]) - before["nats"], 1)
        line += "  ".join(f"{v:.1f} {d:+.2f}" for v, d in zip(validation, drift, strict=True))
        print(line, flush=True)
    sizes = [row["parameters"] for row in found.values()]
    chosen_rates = {what: [row[what] for row in found.values()] for what in ("accuracy", "forgetting")}
    same_rate = {
        f"forgetting at {rate:.0e}": [results[way]["nats"][i] for way in found]
        for i, rate in enumerate(config.rates)
    }
    for what, values in (chosen_rates | same_rate).items():
        each = [rank_correlation(sizes, column) for column in np.array(values).T]
        print(f"rank correlation of {what} with the trained weights: {statistics.mean_text(each, '+.2f')}")
    return found


def draw(path: Any, tables: dict[str, dict[str, Any]], title: str) -> None:
    """Draw accuracy and forgetting against the trained parameters, a row of axes for each task."""
    fig, axes = plots.panels(len(tables), 2, size=(11, 4.2 * len(tables)))
    for i, (task, table) in enumerate(tables.items()):
        for j, (what, label) in enumerate(
            (("accuracy", "accuracy [%]"), ("forgetting", "forgetting [nats a token]"))
        ):
            ax = axes[2 * i + j]
            for k, (way, row) in enumerate(table.items()):
                mean, half = statistics.mean_interval(row[what])
                color = plots.COLORS[KINDS.index(kind_of(way))]
                half = None if np.isnan(half) else half
                ax.errorbar(row["parameters"], mean, half, marker="o", markersize=4, capsize=2, color=color)
                x, y, side = ((5, 5, "left"), (5, -11, "left"), (-5, 5, "right"), (-5, -11, "right"))[k % 4]
                where = {"xytext": (x, y), "textcoords": "offset points", "ha": side}
                ax.annotate(way, (row["parameters"], mean), fontsize=7, **where)
            ax.set(xscale="log", xlabel="trained parameters", ylabel=label, title=f"{task}: {what}")
            if what == "forgetting":
                ax.set_yscale("symlog", linthresh=0.1)
                least = min(np.min(row[what]) for row in table.values())
                ax.set_ylim(min(0.0, 1.2 * least), None)
    for i, kind in enumerate(KINDS):
        fig.axes[0].plot([], [], "o", color=plots.COLORS[i], label=kind)
    fig.axes[0].legend(fontsize=8)
    fig.suptitle(title)
    plots.save_figure(fig, path)


def main(config: Config) -> None:
    """Pre-train or load, tune by every way on every task; print, save and draw."""
    config.require(steps=1, rates=0, lengths=1)
    if len(config.lengths) != len(config.tasks):
        raise ValueError(f"lengths must be one for each task; got {config.lengths} for {config.tasks}")
    if list(config.rates) != sorted(config.rates):
        raise ValueError(f"rates must be in rising order; got {config.rates}")
    use_cpu_devices()
    folder = config.open_folder()
    start = time.perf_counter()
    if config.model is None:
        base = own_base(config, folder)
    else:
        base = published_base(config.model, config.text, config.held_out_tokens)
    ways = make_ways(base.lm, config.ranks)
    if unknown := sorted(set(config.ways) - ways.keys()):
        raise ValueError(f"ways must be among {', '.join(ways)}; got {', '.join(unknown)}")
    rows = config.validation_rows, config.test_rows
    tables, results = {}, {}
    for name, length in zip(config.tasks, config.lengths, strict=True):
        task = make_task(name, base.tokenizer, length, rows)
        results[name] = {UNTUNED: folder.once(f"{name}_untuned.json", measure_untuned, base, task)}
        for way in config.ways or ways:
            begin = time.perf_counter()
            file = f"{name}_{way}.json".replace(" ", "_")
            results[name][way] = folder.once(file, run_way, config, base, ways[way], task)
            print(f"{name}, {way}: {time.perf_counter() - begin:.0f} s", flush=True)
        tables[name] = report(config, name, results[name])
    folder.write_json("result.json", {"rates": config.rates, "every_rate": results, "chosen": tables})
    who = "a small model of our own" if config.model is None else config.model
    draw(folder.path / "peft.png", tables, f"{who}, {config.seeds} seeds, 95% intervals")
    print(f"figure and result.json are in {folder.path}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
