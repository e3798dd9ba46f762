"""Settings of the whole suite: implicit rank promotion is an error, so a lost axis cannot broadcast away."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
