"""The host's side of a run: loop, folder, checkpoints, metrics, figures, command line, devices."""

from jaxrl_align.runtime.checkpoint import fingerprint, latest_step, restore, save
from jaxrl_align.runtime.folder import RunFolder, open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.members import MembersConfig, Trained, cross_rates, train_members, with_data
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices
from jaxrl_align.runtime.metrics import (
    History,
    interquartile_mean,
    interquartile_text,
    mean_interval,
    mean_text,
    peak_memory,
    read_metrics,
)
from jaxrl_align.runtime.plots import curve_with_interval, figure, save_curves, save_figure

# fmt: off
__all__ = [
    "History", "MembersConfig", "RunFolder", "Trained", "cross_rates", "curve_with_interval", "figure",
    "fingerprint", "interquartile_mean", "interquartile_text", "latest_step", "mean_interval",
    "mean_text", "open_run", "peak_memory", "read_metrics", "restore", "run", "save", "save_curves",
    "save_figure", "shard_members", "train_members", "use_cpu_devices", "with_data",
]
# fmt: on
