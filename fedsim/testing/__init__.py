"""Conformance suites: the checks that every part passes, for the authors of plug-ins as for fedsim's own."""
