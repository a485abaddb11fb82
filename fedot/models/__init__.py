"""Anatomy of a causal language model, adapters on it, and plugging them in."""
