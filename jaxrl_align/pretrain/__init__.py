"""Supervised and self-supervised learners: language models and layer-wise pre-training."""
