"""Flax networks behind `(init, apply)` pairs; the only room that imports flax."""
