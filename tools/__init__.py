"""Programs for developers: random checkpoints, the demo model, evaluation tasks."""
