"""Models by name, and the step from the scenario's ``[model]`` to a module."""
