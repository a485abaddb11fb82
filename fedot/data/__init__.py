"""Records, prompts, token sequences."""
