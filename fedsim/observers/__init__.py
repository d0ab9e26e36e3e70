"""The honest-but-curious side: who follows the protocol, keeps what it is shown, and tries to learn from it."""
