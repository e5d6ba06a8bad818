"""transformers' own tests of tokenizers, on a directory that ``adept-fast convert --to hf`` wrote.

Run it with transformers' source distribution first on PYTHONPATH (its folder ``tests`` is imported as a
package), the package ``parameterized``, and ADEPT_FAST_TOKENIZER, the converted directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from transformers import PreTrainedTokenizerFast

from tests import test_tokenization_common as common

DIRECTORY = os.environ["ADEPT_FAST_TOKENIZER"]


class TestCommon(common.TokenizerTesterMixin, unittest.TestCase):
    """What every tokenizer has in common."""

    tokenizer_class = PreTrainedTokenizerFast
    from_pretrained_id = DIRECTORY
    test_seq2seq = False
    test_tokenizer_from_extractor = False  # for classes that build themselves from a vocabulary

    @classmethod
    def setUpClass(cls) -> None:
        # The source distribution lacks a text that setUpClass reads, and that no test uses.
        fixtures = tempfile.mkdtemp()
        (Path(fixtures) / "fixtures").mkdir()
        (Path(fixtures) / "fixtures" / "sample_text.txt").write_text("A text.\n", encoding="utf-8")
        try:
            with mock.patch.object(common, "get_tests_dir", return_value=fixtures):
                super().setUpClass()
        finally:
            shutil.rmtree(fixtures)


class TestBackend(TokenizersBackendTesterMixin, unittest.TestCase):
    """What the tokenizers library adds: offsets, alignment, training."""

    tokenizer_class = rust_tokenizer_class = PreTrainedTokenizerFast
    from_pretrained_id = DIRECTORY
    from_pretrained_kwargs: dict[str, object] = {}


class TestSentencePiece(common.SentencePieceBackendCommonTest):
    """What tokenizers of sentencepiece models have in common."""

    tokenizer_class = rust_tokenizer_class = PreTrainedTokenizerFast
    from_pretrained_id = DIRECTORY
    from_pretrained_kwargs: dict[str, object] = {}
    test_sentencepiece = True
