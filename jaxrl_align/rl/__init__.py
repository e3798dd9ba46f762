"""Reinforcement learners; they know neither environments nor language models."""
