"""The engine: it loads a model, schedules sequences, runs steps and returns text."""
