"""Trained policies of environments: kept in a folder, opened without their learner, played and filmed."""
