"""Local losses, heads and adapters, each usable alone in a plain PyTorch loop."""
