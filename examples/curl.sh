#!/bin/sh
# The HTTP interfaces of `adept-fast serve`, with curl. ADEPT_FAST_SERVER names another server, and
# ADEPT_FAST_API_KEY is its key.
set -eu

server=${ADEPT_FAST_SERVER:-http://127.0.0.1:8000}

# A request: its path, and its body if it has one. The key goes through a file descriptor: others see arguments.
request() {
    path=$1
    shift
    if [ $# -gt 0 ]; then set -- --header 'Content-Type: application/json' --data "$@"; fi
    printf 'header = "Authorization: Bearer %s"\n' "${ADEPT_FAST_API_KEY:-none}" |
        curl --silent --show-error --fail-with-body --no-buffer --config - "$@" "$server$path"
    echo
}

request /v1/models

request /v1/chat/completions '{
    "model": "demo",
    "messages": [{"role": "user", "content": "What is the capital of Peru?"}],
    "temperature": 0
}'

# A stream: one event for each step, then the usage, then [DONE].
request /v1/chat/completions '{
    "model": "demo",
    "messages": [{"role": "user", "content": "What is 3 plus 4?"}],
    "temperature": 0,
    "stream": true,
    "stream_options": {"include_usage": true}
}'

# The most likely tokens after a prompt, and their log-probabilities.
request /v1/completions '{
    "model": "demo",
    "prompt": "The capital of Peru is",
    "max_tokens": 1,
    "temperature": 0,
    "logprobs": 3
}'

request /tokenize '{"model": "demo", "prompt": "Once upon a time"}'
