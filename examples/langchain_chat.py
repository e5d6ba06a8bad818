"""LangChain with a server of adept-fast: a prompt, a conversation, and a stream.

    pip install langchain-openai
    adept-fast serve
    python examples/langchain_chat.py

OPENAI_BASE_URL names another server, and OPENAI_API_KEY is its key.
"""

from __future__ import annotations

import os

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    model = ChatOpenAI(
        model="demo",
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        temperature=0,
        max_tokens=64,
    )

    prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")])
    chain = prompt | model | StrOutputParser()
    print(chain.invoke({"country": "Peru"}))
    for answer in chain.batch([{"country": "Kenya"}, {"country": "Japan"}]):
        print(answer)

    conversation = [
        HumanMessage("What is 3 plus 4?"),
        AIMessage("3 plus 4 is 7."),
        HumanMessage("Who are you?"),
    ]
    for piece in model.stream(conversation):
        print(piece.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
