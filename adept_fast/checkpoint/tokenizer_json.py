"""A ``tokenizer.json`` written by hand from a sentencepiece model, so that both give the same ids and text.

The tokenizers library does not know sentencepiece's types of pieces: it would match every entry of the
vocabulary in text, and sentencepiece matches only normal and user-defined ones.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sentencepiece

from adept_fast.checkpoint.sentencepiece_proto import (
    ModelType,
    Piece,
    PieceType,
    SentencePieceModel,
    parse_model,
)
from adept_fast.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError

_SPACE = "▁"
_RESERVED = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.UNUSED, PieceType.BYTE)


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of a ``tokenizer.json`` for the tokenizers library.

    Its added tokens are those added to the sentencepiece model: the library cuts them out of the text before
    it is normalised, which sentencepiece does not do with its own pieces. transformers adds those that
    ``tokenizer_config.json`` names. In texts of some hundred thousand characters the two may still choose
    different segmentations of equal score, as sentencepiece adds the scores in float32.

    Raises TokenizerError for a model that the format cannot express exactly.
    """
    model = parse_model(tokenizer.model, tokenizer.source)
    try:
        _require_expressible(model, tokenizer)
        scores, splits = _hide_reserved(model)
        prefix = _prefix_step(model, tokenizer)
        added = _added_tokens(tokenizer, len(model.pieces))
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": _sequence("normalizers", _normalizers(model, tokenizer.model, prefix)),
            "pre_tokenizer": _pre_tokenizer(splits, prefix),
            "post_processor": _post_processor(tokenizer),
            "decoder": _sequence("decoders", _decoders(model, has_added=bool(added))),
            "model": {
                "type": "Unigram",
                "unk_id": next(
                    at for at, piece in enumerate(model.pieces) if piece.type is PieceType.UNKNOWN
                ),
                "vocab": [[piece.text, score] for piece, score in zip(model.pieces, scores, strict=True)],
                "byte_fallback": model.byte_fallback,
            },
        }
    except _InexpressibleError as error:
        raise TokenizerError(f"{tokenizer.source}: cannot be written as tokenizer.json: {error}") from error


class _InexpressibleError(ValueError):
    """The reason that a model cannot be written as tokenizer.json."""


def _require_expressible(model: SentencePieceModel, tokenizer: Tokenizer) -> None:
    if model.model_type is not ModelType.UNIGRAM:
        raise _InexpressibleError(f"its model type is {model.model_type.name}; expected UNIGRAM")
    if model.treat_whitespace_as_suffix:
        raise _InexpressibleError("it treats whitespace as a suffix; expected a prefix")
    if not model.normalizer.escape_whitespaces:
        raise _InexpressibleError("it does not escape whitespace; expected spaces to become ▁")
    if model.changes_decoded_text:
        raise _InexpressibleError("it has a denormaliser; expected decoded text to be left as it is")
    if [piece.text for piece in model.pieces] != tokenizer.pieces()[: len(model.pieces)]:
        raise _InexpressibleError("its pieces are not those that sentencepiece reads")
    seen: set[str] = set()
    for piece in model.pieces:
        if piece.text in seen:
            raise _InexpressibleError(f"it has the piece {piece.text!r} twice, as different types")
        seen.add(piece.text)


def _added_tokens(tokenizer: Tokenizer, pieces: int) -> list[dict[str, Any]]:
    """The entries of added tokens, to which the library gives ids one after the other."""
    vocabulary = tokenizer.vocabulary
    added = vocabulary.added if isinstance(vocabulary, SentencePieceVocabulary) else ()
    entries = []
    for token in sorted(added, key=lambda token: token.token_id):
        if token.token_id > pieces:
            raise _InexpressibleError(
                f"the added token {token.content!r:.80} has the id {token.token_id}; "
                f"expected {pieces}, the next one"
            )
        pieces += token.token_id == pieces
        entry = asdict(token)
        entries.append({"id": entry.pop("token_id"), **entry})
    return entries


def _hide_reserved(model: SentencePieceModel) -> tuple[list[float], dict[str, str]]:
    """Scores of all pieces, and the points at which to split text, so that no reserved piece matches.

    Split the text behind each key, a character, if one of the value's characters follows.

    Reserved pieces (control, unknown, unused, bytes) never stand for text in sentencepiece. If the others
    can spell such a piece one character at a time, it gets a score below any such spelling. If they
    cannot, the library would still prefer it to unknown characters, so the text is split inside it instead,
    where no piece could have matched across.
    """
    matched = [piece for piece in model.pieces if piece.type not in _RESERVED]
    known = {piece.text for piece in matched if len(piece.text) == 1}
    normal_scores = [piece.score for piece in model.pieces if piece.type is PieceType.NORMAL]
    lowest, highest = min([0.0, *normal_scores]), max([0.0, *normal_scores])
    scores: list[float] = []
    splits: dict[str, str] = {}
    unspelt = any(not known.issuperset(piece.text) for piece in model.pieces if piece.type in _RESERVED)
    neighbours = _neighbours(matched) if unspelt else set()
    lowered = False
    for piece in model.pieces:
        score = piece.score
        if piece.type is PieceType.USER_DEFINED:
            # sentencepiece's own formula, which makes these win over everything else.
            score = len(piece.text.encode("utf-8")) * highest - 0.1
        elif piece.type in _RESERVED:
            if known.issuperset(piece.text):
                score = len(piece.text) * lowest - 1.0
                lowered = True
            else:
                before, after = _split_inside(piece.text, known, neighbours, model.byte_fallback)
                if after not in splits.setdefault(before, ""):
                    splits[before] += after
        scores.append(score)
    if lowered:
        _require_all_characters(matched, known)
    return scores, splits


def _neighbours(matched: Iterable[Piece]) -> set[str]:
    """Every two characters that are side by side in some piece."""
    return {piece.text[at : at + 2] for piece in matched for at in range(len(piece.text) - 1)}


def _split_inside(text: str, known: set[str], neighbours: set[str], byte_fallback: bool) -> tuple[str, str]:
    """Two characters side by side in a reserved piece, between which no other piece can match across."""
    for at in range(1, len(text)):
        before, after = text[at - 1], text[at]
        # Without bytes to fall back to, unknown characters in a row become one token and must stay together.
        both_unknown = before not in known and after not in known
        if both_unknown and not byte_fallback:
            continue
        if before + after not in neighbours:
            return before, after
    raise _InexpressibleError(f"nothing keeps text from matching the reserved piece {text!r}")


def _require_all_characters(matched: Iterable[Piece], known: set[str]) -> None:
    # The library derives the score of unknown characters from the lowest of all scores; that matters only
    # where an unknown character competes with a longer piece that contains it.
    for piece in matched:
        if piece.type is PieceType.NORMAL and not known.issuperset(piece.text):
            missing = next(character for character in piece.text if character not in known)
            raise _InexpressibleError(
                f"the piece {piece.text!r} holds {missing!r}, which is no piece by itself"
            )


def _prefix_step(model: SentencePieceModel, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The step that puts ▁ before text: Metaspace after normalisation, or Prepend, which is part of it.

    The library normalises the names of added tokens too. After Prepend they match only at the beginning of
    words; so it remains only if the source has such tokens, or for text that normalisation may remove.
    """
    if not model.normalizer.add_dummy_prefix:
        return None
    vocabulary = tokenizer.vocabulary
    in_names = isinstance(vocabulary, SentencePieceVocabulary) and vocabulary.prefixes_names
    removed = model.normalizer.precompiled_charsmap and not model.normalizer.remove_extra_whitespaces
    if in_names or removed:
        return {"type": "Prepend", "prepend": _SPACE}
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": False}


def _normalizers(
    model: SentencePieceModel, model_bytes: bytes, prefix_step: dict[str, Any] | None
) -> list[dict[str, Any]]:
    spec = model.normalizer
    steps: list[dict[str, Any]] = []
    in_words = prefix_step is not None and prefix_step["type"] == "Metaspace"
    prefix = [] if prefix_step is None or in_words else [prefix_step]
    if not spec.remove_extra_whitespaces:
        steps += prefix  # first, as text of which nothing remains has a prefix all the same
    if spec.precompiled_charsmap:
        steps += _charsmap(model, model_bytes)
    if spec.remove_extra_whitespaces:
        # sentencepiece strips ▁ at the end, whether it was a space or not, but at the beginning only spaces.
        steps += [
            _replace({"Regex": " {2,}"}, " "),
            _replace({"Regex": r"\A +"}, ""),
            _replace({"Regex": rf"[ {_SPACE}]+\z"}, ""),
            *prefix,
        ]
    steps.append(_replace({"String": " "}, _SPACE))
    if in_words:
        # Metaspace leaves out the prefix of text that begins with ▁, which sentencepiece does not.
        steps.append(_replace({"Regex": rf"\A{_SPACE}"}, _SPACE * 2))
    return steps


def _charsmap(model: SentencePieceModel, model_bytes: bytes) -> list[dict[str, Any]]:
    """The model's own table of replacements, and rules for two cases that the library leaves out."""
    normalize = sentencepiece.SentencePieceNormalizer(
        model_proto=model_bytes,
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    ).normalize
    for piece in model.pieces:
        # sentencepiece keeps user-defined pieces as they are; the library has no way to.
        if piece.type is PieceType.USER_DEFINED and normalize(piece.text) != piece.text:
            raise _InexpressibleError(f"its normaliser changes the user-defined piece {piece.text!r}")
    # The library looks up a grapheme, and then only its first code point: two of the pairs without a
    # combining mark are common or short enough to be worth a rule.
    pairs = [
        _replace({"String": pair}, normalize(pair)) for pair in ("\r\n", _SPACE) if normalize(pair) != pair
    ]
    table = base64.b64encode(model.normalizer.precompiled_charsmap).decode("ascii")
    return [*pairs, {"type": "Precompiled", "precompiled_charsmap": table}]


def _pre_tokenizer(splits: Mapping[str, str], prefix: dict[str, Any] | None) -> dict[str, Any] | None:
    steps = [prefix] if prefix is not None and prefix["type"] == "Metaspace" else []
    patterns = [
        f"{re.escape(before)}(?={'|'.join(map(re.escape, following))})"
        for before, following in splits.items()
    ]
    if patterns:
        pattern = {"Regex": "|".join(patterns)}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False})
    return _sequence("pretokenizers", steps) if steps else None


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if not tokenizer.add_bos or tokenizer.bos_id is None:
        return None
    bos = tokenizer.piece(tokenizer.bos_id)
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": at}}, {"Sequence": {"id": name, "type_id": at}}]
        for at, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _decoders(model: SentencePieceModel, *, has_added: bool) -> list[dict[str, Any]]:
    unknown = next(piece.text for piece in model.pieces if piece.type is PieceType.UNKNOWN)
    # Control pieces are nothing to sentencepiece. Here their names stay, as transformers expects: it leaves
    # them out if skip_special_tokens is set, and programs find the names by decoding the ids. So does that of
    # the unknown piece, unless a text can have it.
    steps = []
    if has_added or not model.byte_fallback:
        steps.append(_replace({"Regex": rf"\A{re.escape(unknown)}\z"}, model.unk_surface))
    steps += [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.normalizer.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _sequence(of: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", of: steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
