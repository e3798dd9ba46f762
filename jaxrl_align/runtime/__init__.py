"""The host side of a run: loop, checkpoints, metrics, plots, command line, device mesh."""
