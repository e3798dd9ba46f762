"""Train agents and align language models in JAX: pure losses, vmappable learners, RLHF as one jitted step."""
