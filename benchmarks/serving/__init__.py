"""Load on servers of the OpenAI interface: how they are started, asked and measured."""
