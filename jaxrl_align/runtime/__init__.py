"""The host's side of a run: loop, folder, checkpoints, metrics, figures, command line, devices."""

from jaxrl_align.runtime.checkpoint import fingerprint, latest_step, restore, save
from jaxrl_align.runtime.devices.spreading import spread
from jaxrl_align.runtime.evidence import Claim, write_result
from jaxrl_align.runtime.folder import RunFolder, open_run
from jaxrl_align.runtime.guards.device_memory import peak_memory
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.members import MembersConfig, Trained, cross_rates, train_members, with_data
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices, use_mesh
from jaxrl_align.runtime.metrics import History, read_metrics
from jaxrl_align.runtime.plots import curve_with_interval, figure, save_curves, save_figure
from jaxrl_align.runtime.resampling import (
    bootstrap,
    bootstrap_mean,
    improvement_probability,
    share_interval,
    win_rate,
)
from jaxrl_align.runtime.statistics import (
    Interval,
    PairedTest,
    crossed_interval,
    fell_by_half,
    interquartile_mean,
    mcnemar_test,
    mean_interval,
    paired_interval,
    ratio_interval,
    t_interval,
    wilson_interval,
)

# fmt: off
__all__ = [
    "Claim", "History", "Interval", "MembersConfig", "PairedTest", "RunFolder", "Trained", "bootstrap",
    "bootstrap_mean", "cross_rates", "crossed_interval", "curve_with_interval", "fell_by_half", "figure",
    "fingerprint", "improvement_probability", "interquartile_mean", "latest_step", "mcnemar_test",
    "mean_interval", "open_run", "paired_interval", "peak_memory", "ratio_interval", "read_metrics",
    "restore", "run", "save", "save_curves", "save_figure", "shard_members", "share_interval", "spread",
    "t_interval", "train_members", "use_cpu_devices", "use_mesh", "wilson_interval", "win_rate",
    "with_data", "write_result",
]
# fmt: on
