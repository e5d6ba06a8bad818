"""The messages of one answer, as a replica sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from adept_fast.engine.sequence import GenerationError, Request
from adept_fast.integrations.ray_serve.messages import (
    Accepted,
    Finished,
    Message,
    Progress,
    Refused,
    RemoteRequest,
)
from adept_fast.server.service import Service

# Between two messages: each costs Ray time of a core on either side, so steps that are faster than this share
# messages.
_MESSAGE_SECONDS = 0.01


async def message_stream(
    service: Service, replica: str, request: RemoteRequest
) -> AsyncGenerator[Message, None]:
    """Accepted, then Progress, at last Finished or Refused.

    Raises whatever another replica may not raise. Closing it frees the answer's slot.
    """
    yield Accepted(replica)
    (answer,) = service.submit(
        [
            Request(
                request.prompt_ids,
                request.params,
                prompt_logprobs=request.prompt_logprobs,
                cache_scope=request.cache_scope,
            )
        ]
    )
    is_first = True
    try:
        async for event in answer:
            scored = answer.generation().prompt_logprobs if is_first else None
            yield Progress([event, *answer.take()], scored)
            is_first = False
            if not answer.is_finished:
                await asyncio.sleep(_MESSAGE_SECONDS)
    except GenerationError as error:
        yield Refused(str(error))
    else:
        yield Finished(answer.generation().timings)
    finally:
        answer.cancel()
