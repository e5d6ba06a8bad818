"""OpenAI's Python client with a server of adept-fast.

    pip install openai
    adept-fast serve
    python examples/openai_client.py

OPENAI_BASE_URL names another server, and OPENAI_API_KEY is its key.
"""

from __future__ import annotations

import asyncio
import os

from openai import AsyncOpenAI, OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
API_KEY = os.environ.get(
    "OPENAI_API_KEY", "none"
)  # the client wants one, the server only if it was started so


def ask(client: OpenAI, model: str) -> None:
    """An answer, and how much of the prompt the server had read before."""
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of Peru?"}],
        temperature=0,
        max_completion_tokens=64,
    )
    print(completion.choices[0].message.content)
    usage = completion.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    print(f"({usage.prompt_tokens_details.cached_tokens} of {usage.prompt_tokens} prompt tokens were cached)")


def complete(client: OpenAI, model: str) -> None:
    """The continuation of a text, sampled with a parameter that OpenAI does not have."""
    completion = client.completions.create(
        model=model,
        prompt="Once upon a time",
        max_tokens=24,
        temperature=0.8,
        seed=7,
        extra_body={"top_k": 40},
    )
    print("Once upon a time" + completion.choices[0].text)


async def stream(client: AsyncOpenAI, model: str, question: str) -> str:
    """An answer, a piece at a time; leaving the block before its end stops the server's work on it."""
    pieces = []
    async with await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, stream=True
    ) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.choices[0].delta.content or "")
    return "".join(pieces)


async def stream_together(model: str) -> None:
    """Several answers at the same time: the server decodes them together."""
    questions = ["Which country has Nairobi as its capital?", "What is 3 plus 4?", "Who are you?"]
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
        for answer in await asyncio.gather(*(stream(client, model, question) for question in questions)):
            print(answer)


def main() -> None:
    with OpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
        model = client.models.list().data[0].id
        ask(client, model)
        complete(client, model)
    asyncio.run(stream_together(model))


if __name__ == "__main__":
    main()
