"""Attacks: what compromised clients do. One file per attack; ``attack.py`` is the interface."""
