"""Local optimizers and learning-rate schedules, each usable alone in a plain PyTorch loop."""
