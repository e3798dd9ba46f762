"""Alignment learners: supervised fine-tuning, reward models, RLHF."""
