"""The claims of the papers, run and held against what they say."""
