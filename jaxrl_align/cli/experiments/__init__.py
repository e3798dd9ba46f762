"""The commands about experiments and their runs: find one, run it, continue it, look at it, compare, play."""
