"""Domains: how experience is made (`rollout`) and judged again under new parameters (`evaluate`)."""
