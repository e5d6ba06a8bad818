"""The README's tables and plots, made of the result files."""
