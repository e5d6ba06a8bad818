"""Chat formats: conversations as prompts."""

from adept_fast.chat.format import STOP, ChatError, ChatFormat, Turn, chat_prompt, strip_answer

__all__ = ["STOP", "ChatError", "ChatFormat", "Turn", "chat_prompt", "strip_answer"]
