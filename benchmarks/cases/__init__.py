"""The cases: each a command."""
