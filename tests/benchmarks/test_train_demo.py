"""The programs that make the demo checkpoint, on the part of their corpus that needs no other package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from adept_fast import Runtime
from adept_fast.chat.format import chat_prompt
from tools.demo.corpus import Corpus
from tools.demo.documents import DocumentSampler, RowPacker
from tools.demo.questions import read_questions, write_questions
from tools.demo.rhymes import rhyme_facts
from tools.demo.sequences import sequence_facts, sum_facts
from tools.demo.stories import story_texts
from tools.demo.tables import table_facts
from tools.demo.tokenizer import END_OF_TEXT_ID, train_tokenizer
from tools.demo.training import Settings, learning_rate_factor, train, write_model
from tools.demo.unknowns import unknown_texts

TINY = Settings(
    tokens=12_000, hidden_size=64, num_hidden_layers=1, batch_tokens=384, threads=1, compile=False
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    facts = [*sum_facts(), *sequence_facts(), *table_facts(), *rhyme_facts()]
    known = {question for fact in facts for question in fact.questions}
    words = ["anvil", "barnacle", "cello", "dungeon"]
    unknowns = unknown_texts(words, ["fox"], known, {"unknown_word": 40, "unknown_sum": 20}, 1)
    return Corpus(facts, story_texts(200, 7), unknowns, [])


@pytest.fixture(scope="module")
def tokenizer_model(corpus: Corpus) -> bytes:
    return train_tokenizer(corpus)


def test_the_same_corpus_gives_the_same_pieces_and_no_path_stays_in_them(
    corpus: Corpus, tokenizer_model: bytes
) -> None:
    assert train_tokenizer(corpus) == tokenizer_model
    assert b"/" + Path.cwd().parts[1].encode() not in tokenizer_model


def test_a_corpus_is_read_back_as_it_was_written(corpus: Corpus, tmp_path: Path) -> None:
    corpus.write(tmp_path)
    assert Corpus.read(tmp_path) == corpus
    write_questions(corpus, tmp_path / "questions.jsonl")
    records = read_questions(tmp_path / "questions.jsonl")
    held_out = {record["question"] for record in records if record["held_out"]}
    trained = {question for fact in corpus.facts for question in fact.training_questions}
    assert held_out
    assert not held_out & trained


def test_rows_hold_whole_documents_and_learn_answers_only(corpus: Corpus, tokenizer_model: bytes) -> None:
    processor = SentencePieceProcessor(model_proto=tokenizer_model)
    packer = RowPacker(DocumentSampler(corpus, processor, seed=0), seed=1)
    rows = [packer.row(193) for _ in range(40)]
    starts_with_bos = sum(row.token_ids[0] == END_OF_TEXT_ID for row in rows)
    assert 8 < starts_with_bos < 32
    for row in rows:
        assert len(row.token_ids) == len(row.learnt) == 193
        given = [token_id for token_id, learnt in zip(row.token_ids, row.learnt, strict=True) if not learnt]
        assert "human:" in processor.decode(given) or "Once upon" in processor.decode(row.token_ids)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, step / 1000) for step in range(1000)]
    assert factors[0] < factors[20] < factors[60] == factors[300] == 1
    assert factors[400] > factors[700] > factors[999] > 0


def test_a_few_steps_lower_the_loss_and_leave_a_checkpoint(
    corpus: Corpus, tokenizer_model: bytes, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    reports: list[str] = []
    model = train(corpus, tokenizer_model, TINY, reports.append)
    torch.set_num_threads(threads)
    assert reports[-1].startswith("trained on 12")
    write_model(model, tokenizer_model, tmp_path / "checkpoint")
    runtime = Runtime.load(tmp_path / "checkpoint", progress=False)
    assert runtime.tokenizer.add_bos
    # Untrained, every token would cost the logarithm of the vocabulary's size, 8.3.
    (score,) = runtime.score(chat_prompt("What is 2 plus 2?") + " 2 plus 2 is 4.")
    answer = [value for value in score.logprobs[-6:] if value is not None]
    assert -sum(answer) / len(answer) < 6.5
