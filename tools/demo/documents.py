"""Documents for training: facts and texts mixed at random, as tokens, packed into rows."""

from __future__ import annotations

import dataclasses
import itertools
import random

import sentencepiece
import torch

from adept_fast.chat.format import chat_prompt
from tools.demo.corpus import Corpus
from tools.demo.facts import Fact, Text
from tools.demo.tokenizer import END_OF_TEXT_ID

# How often a fact of a category is drawn; others count 1. Few facts, or hard ones, are drawn more often.
CATEGORY_WEIGHTS = {
    "capital": 1.6,
    "capital_of": 1.2,
    "continent": 0.8,
    "currency": 1.2,
    "country": 0.8,
    "define": 1.4,
    "kind": 0.9,
    "element": 0.8,
    "add": 1.2,
    "subtract": 1.3,
    "multiply": 1.5,
    "sequence": 1.8,
    "table": 1.8,
    "rhyme": 10.0,
    "chat": 8.0,
}
STORY_SHARE = 0.05
UNKNOWN_SHARE = 0.11
LOWER_CASE_SHARE = 0.2
NO_END_MARK_SHARE = 0.18
# A dialogue may have several turns, so that a chat that goes on is nothing new.
FURTHER_TURN_SHARE = 0.12
MOST_TURNS = 4
BEGINNING_OF_TEXT_SHARE = 0.5
WAITING_DOCUMENTS = 8


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens, and for each whether it is learnt (an answer's) or only context (a question's)."""

    token_ids: list[int]
    learnt: list[bool]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens; positions in the flattened rows and the next tokens there; weight 1 if to be learnt."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


class DocumentSampler:
    """Draws documents from a corpus, always in the same order for the same seed."""

    def __init__(self, corpus: Corpus, processor: sentencepiece.SentencePieceProcessor, seed: int) -> None:
        self.generator = random.Random(seed)
        self.processor = processor
        self.corpus = corpus
        weights = [CATEGORY_WEIGHTS.get(fact.category, 1.0) for fact in corpus.facts]
        self.cumulative_weights = list(itertools.accumulate(weights))
        self.training_questions = [fact.training_questions for fact in corpus.facts]
        self.fact_indices = range(len(corpus.facts))

    def document(self) -> Document:
        """The next document: a dialogue, or a story on its own."""
        record = self._record()
        if record.question is None:
            token_ids = self.processor.encode(record.answer)
            return Document(token_ids, [True] * len(token_ids))
        turns = [record]
        while len(turns) < MOST_TURNS and self.generator.random() < FURTHER_TURN_SHARE:
            record = self._record()
            if record.question is not None:
                turns.append(record)
        return self._dialogue(turns)

    def _record(self) -> Text:
        """One question with its answer, the question varied as people vary them."""
        choice = self.generator.random()
        if choice < STORY_SHARE:
            record = self.generator.choice(self.corpus.stories)
        elif choice < STORY_SHARE + UNKNOWN_SHARE:
            record = self.generator.choice(self.corpus.unknowns)
        else:
            index = self.generator.choices(self.fact_indices, cum_weights=self.cumulative_weights)[0]
            fact: Fact = self.corpus.facts[index]
            record = Text(fact.category, self.generator.choice(self.training_questions[index]), fact.answer)
        if record.question is None:
            return record
        return dataclasses.replace(record, question=self._vary(record.question))

    def _vary(self, question: str) -> str:
        if self.generator.random() < LOWER_CASE_SHARE:
            question = question.lower()
        if self.generator.random() < NO_END_MARK_SHARE:
            question = question.rstrip("?.! ")
        return question

    def _dialogue(self, turns: list[Text]) -> Document:
        """The turns as one text. No piece spans a space or a newline: parts of it encode as in the whole."""
        text, spans = "", []
        for turn in turns:
            text += ("\n\n" if text else "") + chat_prompt(turn.question or "")
            start = len(self.processor.encode(text))
            text += f" {turn.answer}"
            spans.append((start, len(self.processor.encode(text))))
        token_ids = self.processor.encode(text)
        learnt = [False] * len(token_ids)
        for start, end in spans:
            learnt[start:end] = [True] * (end - start)
        return Document(token_ids, learnt)


class RowPacker:
    """Packs documents into rows, an end-of-text token after each and before the first of every other row."""

    def __init__(self, sampler: DocumentSampler, seed: int) -> None:
        self.sampler = sampler
        self.generator = random.Random(seed)
        self.waiting: list[Document] = []

    def row(self, length: int) -> Document:
        """One row of `length` tokens, padded with end-of-text tokens that are not learnt."""
        token_ids: list[int] = []
        learnt: list[bool] = []
        if self.generator.random() < BEGINNING_OF_TEXT_SHARE:
            token_ids.append(END_OF_TEXT_ID)
            learnt.append(False)
        while (document := self._next_document(length - len(token_ids) - 1, length)) is not None:
            token_ids += [*document.token_ids, END_OF_TEXT_ID]
            learnt += [*document.learnt, True]
        padding = length - len(token_ids)
        return Document(token_ids + [END_OF_TEXT_ID] * padding, learnt + [False] * padding)

    def _next_document(self, room: int, row_length: int) -> Document | None:
        """A document that fits, earlier ones that did not fit first; None if enough are waiting."""
        for i, document in enumerate(self.waiting):
            if len(document.token_ids) <= room:
                return self.waiting.pop(i)
        while len(self.waiting) < WAITING_DOCUMENTS:
            document = self.sampler.document()
            if len(document.token_ids) <= room:
                return document
            if len(document.token_ids) <= row_length - 2:
                self.waiting.append(document)
        return None

    def batch(self, rows: int, length: int, learnt_share: float) -> Batch:
        """`rows` rows for training.

        The positions are padded or cut to a fixed number, `learnt_share` of all, so that shapes never change.
        """
        packed = [self.row(length + 1) for _ in range(rows)]
        token_ids = torch.tensor([row.token_ids for row in packed])
        learnt = torch.tensor([row.learnt[1:] for row in packed])
        count = int(learnt_share * rows * length)
        positions = learnt.flatten().nonzero().squeeze(1)[:count]
        weights = torch.zeros(count)
        weights[: len(positions)] = 1
        positions = torch.nn.functional.pad(positions, (0, count - len(positions)))
        targets = token_ids[:, 1:].flatten()[positions]
        return Batch(token_ids[:, :-1].contiguous(), positions, targets, weights)
