"""The tokenizer's description in each checkpoint format, and the settings that a format cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from adept_fast.checkpoint.base import Checkpoint
from adept_fast.checkpoint.tokenizer_check import check_tokenizer_json
from adept_fast.checkpoint.tokenizer_json import tokenizer_json
from adept_fast.tokenizer.fast_vocabulary import FastVocabulary
from adept_fast.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError


def checked_tokenizer_json(tokenizer: Tokenizer) -> tuple[dict[str, Any], str]:
    """The contents of a ``tokenizer.json``, and the result of their comparison with sentencepiece.

    Raises TokenizerError if no tokenizer.json equals the tokenizer.
    """
    if isinstance(tokenizer.vocabulary, FastVocabulary):
        return dict(tokenizer.vocabulary.contents), "the tokenizer.json of the source"
    contents = tokenizer_json(tokenizer)
    return contents, str(check_tokenizer_json(tokenizer, contents))


def size_of_files(tokenizer: Tokenizer) -> int:
    """Bytes of the files that the vocabulary was read from."""
    return sum(map(len, tokenizer.vocabulary.files.values()))


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of a ``generation_config.json``: greedy, up to the end of the text."""
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end_ids(tokenizer),
        "pad_token_id": pad_id(tokenizer),
    }
    return {name: token_id for name, token_id in ids.items() if token_id is not None} | {"do_sample": False}


def pad_id(tokenizer: Tokenizer) -> int | None:
    """The id that pads a batch in transformers: the checkpoint's own, else the unknown piece.

    Persimmon has no token for padding. If unknown characters become bytes, no text has the unknown piece;
    if not, the result is None. The end token is no padding, as it may begin a text, and as training ignores
    labels that are padding.
    """
    if (named := tokenizer.special_tokens.get("pad_token")) is not None:
        return tokenizer.vocabulary.find(named)
    has_bytes = any(tokenizer.byte_value(token_id) is not None for token_id in range(tokenizer.vocab_size))
    return _unknown(tokenizer) if has_bytes else None


def end_ids(tokenizer: Tokenizer) -> Any:
    """The tokens that end a text as transformers' files have them: an id, a list of several, or None."""
    return list(tokenizer.eos_ids) if len(tokenizer.eos_ids) > 1 else tokenizer.eos_id


def tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The contents of a ``tokenizer_config.json``."""
    tokenizer = checkpoint.tokenizer
    tokens = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": _unknown(tokenizer),
        "pad_token": pad_id(tokenizer),
    }
    added = _listed_tokens(tokenizer)
    return {
        # Every transformers release reads tokenizer.json unchanged into this class.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: None if at is None else tokenizer.piece(at) for name, at in tokens.items()},
        **tokenizer.special_tokens,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        "padding_side": "left",  # generation goes on from the last token
        "clean_up_tokenization_spaces": False,
        "model_max_length": checkpoint.config.max_position_embeddings,
        "split_special_tokens": tokenizer.vocabulary.splits_special_tokens,
        "chat_template": tokenizer.chat_format.source(tokenizer.add_bos),
        **({"added_tokens_decoder": added} if added else {}),
    }


def require_for_adept(tokenizer: Tokenizer) -> None:
    """Raises TokenizerError for a tokenizer that is not a sentencepiece model alone."""
    vocabulary = tokenizer.vocabulary
    if not isinstance(vocabulary, SentencePieceVocabulary):
        raise TokenizerError(
            f"{tokenizer.source}: Adept's format has a sentencepiece model, and this checkpoint none; "
            "expected the format huggingface or native"
        )
    beyond = [token for token in vocabulary.added if token.token_id >= vocabulary.pieces]
    if beyond:
        raise TokenizerError(
            f"{tokenizer.source}: Adept's format cannot hold the added token {beyond[0].content!r:.80}; "
            "expected the format huggingface or native"
        )


def lost_in_adepts_format(tokenizer: Tokenizer) -> Iterator[str]:
    """The tokenizer's settings that Adept's format cannot hold."""
    lost = "Adept's format cannot record that"
    if tokenizer.add_bos:
        yield f"{lost} BOS is put before text; set it when you generate"
    plain = Tokenizer(tokenizer.model, source=tokenizer.source)
    if tokenizer.bos_id is not None and tokenizer.bos_id != plain.bos_id:
        yield f"{lost} BOS is {tokenizer.piece(tokenizer.bos_id)!r}"
    for token_id in tokenizer.eos_ids:
        if token_id not in plain.eos_ids:
            yield f"{lost} {tokenizer.piece(token_id)!r} ends a text"
    if isinstance(tokenizer.vocabulary, SentencePieceVocabulary) and tokenizer.vocabulary.added:
        yield f"{lost} {tokenizer.vocabulary.added[0].content!r} in text is a token"
    if tokenizer.chat_format.writes_special_tokens:
        yield "Adept's format cannot hold a chat template"


def vocabulary_listing(tokenizer: Tokenizer) -> str:
    """The text beside Adept's tokenizer: a line for each piece, with its score."""
    lines = zip(tokenizer.pieces(), tokenizer.scores(), strict=True)
    return "".join(f"{piece}\t{score:g}\n" for piece, score in lines)


def _listed_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Added tokens that tokenizer_config.json has to list, by their ids."""
    vocabulary = tokenizer.vocabulary
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return {}  # tokenizer.json lists them
    listed = {str(token.token_id): asdict(token) for token in vocabulary.added}
    for entry in listed.values():
        del entry["token_id"]
    return listed


def _unknown(tokenizer: Tokenizer) -> int | None:
    return next((at for at in range(tokenizer.vocab_size) if tokenizer.is_unknown(at)), None)
