"""Defenses and server rules, one file each; ``strategy.py`` is the Flower Strategy that composes them."""
