"""Statistics over rounds and seeds, and diagnostics of training."""
