"""What can be measured: a command in each module."""
