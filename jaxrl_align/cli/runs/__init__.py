"""Training commands: from their parts to a run, a written folder and its card."""
