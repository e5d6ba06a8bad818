"""The tokenizer: a sentencepiece Unigram model with byte fallback."""

from __future__ import annotations

import io
from collections.abc import Iterator

import sentencepiece

from tools.demo.corpus import Corpus

VOCAB_SIZE = 4096
UNKNOWN_ID, END_OF_TEXT_ID = 0, 1
END_OF_TEXT_PIECE = "|ENDOFTEXT|"
TEXT_STRIDE = 6
SENTENCE_LIMIT = 1_000_000


def training_lines(corpus: Corpus) -> Iterator[str]:
    """The lines that pieces are learnt from.

    No line has a newline inside: newlines stay bytes, and a prompt's tokens do not depend on what follows.
    """
    for fact in corpus.facts:
        answers = [f"adept: {line}" for line in fact.answer.split("\n")]
        yield from answers
        for question in fact.training_questions:
            yield f"human: {question}"
            yield from answers
        yield f"human: {fact.training_questions[0].lower()}"
    for text in (corpus.stories + corpus.unknowns)[::TEXT_STRIDE]:
        if text.question:
            yield f"human: {text.question}"
        yield f"adept: {text.answer}"


def train_tokenizer(corpus: Corpus) -> bytes:
    """The trained model, the contents of a tokenizer.model.

    As in Adept's tokenizer the piece that ends a document also begins one, and there is none for padding.
    """
    model = io.BytesIO()  # a path would stay in the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_lines(corpus),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=0.9995,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=UNKNOWN_ID,
        bos_id=END_OF_TEXT_ID,
        bos_piece=END_OF_TEXT_PIECE,
        eos_id=-1,
        pad_id=-1,
        num_threads=2,
        input_sentence_size=SENTENCE_LIMIT,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()
