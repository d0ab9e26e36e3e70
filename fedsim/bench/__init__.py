"""Grids of scenarios: the product of a ``[matrix]``, one folder a cell, one table."""
