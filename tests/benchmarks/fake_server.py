"""A server that answers completions at once: ``python fake_server.py PORT BEHAVIOUR``, for tests of loads."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Behaves as the process was told: ``good``, or ``bad``, which refuses long prompts."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = len(body["prompt"].split())
        if sys.argv[2] == "bad" and words > 50:
            self.send_error(400, "too long")
            return
        self.send_response(200)
        self.end_headers()
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        for _ in range(body["max_tokens"]):
            self._send(json.dumps({"choices": [{"text": body["model"]}]}))
        self._send(json.dumps({"choices": [], "usage": usage}))
        self._send("[DONE]")

    def _send(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[2] == "dead":
        sys.exit("no model there")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
