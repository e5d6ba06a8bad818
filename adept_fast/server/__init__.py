"""Serving a Runtime over HTTP: OpenAI's API, Adept's own, a web page, and what operating them takes.

Everything here but ``settings`` and ``service`` needs the packages of ``adept-fast[serve]``.
"""
