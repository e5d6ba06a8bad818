"""Serving over HTTP: OpenAI's API, Adept's own, and a web page to chat."""
