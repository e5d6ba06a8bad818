"""Chat templates of checkpoints: jinja sources that are rendered with bounds on their time and memory."""
