"""Training of the demo model: Muon for the layers' matrices, AdamW for the rest, a schedule by tokens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
from torch.nn import functional
from transformers import PersimmonConfig, PersimmonForCausalLM

import adept_fast
from adept_fast.checkpoint import Checkpoint, StoredTensor
from adept_fast.checkpoint.save import save_huggingface
from tools.demo.corpus import Corpus
from tools.demo.documents import Batch, DocumentSampler, RowPacker
from tools.demo.tokenizer import END_OF_TEXT_ID, UNKNOWN_ID, VOCAB_SIZE

HEAD_DIM = 64
MAX_POSITION_EMBEDDINGS = 512
WARMUP_STEPS = 40
CONSTANT_SHARE = 0.35
SMALLEST_RATE = 0.02
# Rows of the full context at the end only: short ones have more beginnings in a step and need less attention.
LONG_ROWS_SHARE = 0.1
LEARNT_SHARE = 0.6
MUON_RATE, ADAMW_RATE = 0.02, 4e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """The size of the model and the length of its training."""

    tokens: int = 7_000_000
    hidden_size: int = 256
    num_hidden_layers: int = 6
    batch_tokens: int = 3840
    row_length: int = 192
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    compile: bool = True


def make_model(settings: Settings) -> PersimmonForCausalLM:
    """A model with Persimmon-8B's architecture and rotary settings, its weights drawn at random."""
    config = PersimmonConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.hidden_size // HEAD_DIM,
        max_position_embeddings=MAX_POSITION_EMBEDDINGS,
        rope_parameters={"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
        tie_word_embeddings=False,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=UNKNOWN_ID,
        initializer_range=0.03,
    )
    torch.manual_seed(settings.seed)
    return PersimmonForCausalLM(config).to(settings.device).train()


def make_optimizers(model: PersimmonForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, progress: float) -> float:
    """The factor of the learning rates: it rises, stays constant, then falls linearly."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    if progress < CONSTANT_SHARE:
        return warmup
    return warmup * max(SMALLEST_RATE, 1 - (progress - CONSTANT_SHARE) / (1 - CONSTANT_SHARE))


def make_loss(model: PersimmonForCausalLM) -> Callable[[Batch], torch.Tensor]:
    """The mean cross entropy of the tokens to learn; only their logits are computed."""

    def loss(batch: Batch) -> torch.Tensor:
        hidden = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[batch.positions])
        losses = functional.cross_entropy(logits.float(), batch.targets, reduction="none")
        return (losses * batch.weights).sum() / batch.weights.sum()

    return loss


def make_update(model: PersimmonForCausalLM, settings: Settings) -> Callable[[Batch, float], torch.Tensor]:
    """A function that learns from one batch at a learning rate factor and returns the loss."""
    optimizers = make_optimizers(model)
    initial_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    loss_function = make_loss(model)
    if settings.compile:
        loss_function = torch.compile(loss_function, dynamic=False)

    def update(batch: Batch, factor: float) -> torch.Tensor:
        for optimizer, rates in zip(optimizers, initial_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with torch.autocast(settings.device, dtype=torch.bfloat16):
            loss = loss_function(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return update


def write_model(model: PersimmonForCausalLM, tokenizer_model: bytes, output: Path) -> None:
    """Writes a Hugging Face directory in float16 that puts the end-of-text piece before a prompt."""
    tensors = {
        name: StoredTensor(name, tuple(tensor.shape), torch.float16, "the trained model", tensor.half().cpu)
        for name, tensor in model.state_dict().items()
    }
    config = adept_fast.PersimmonConfig.from_dict(model.config.to_dict())
    tokenizer = adept_fast.Tokenizer(tokenizer_model, add_bos=True)
    checkpoint = Checkpoint(output, "training", config, tensors, tokenizer)
    save_huggingface(checkpoint, output, license_name="apache-2.0")


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on the device."""
    return Batch(*(getattr(batch, field.name).to(device) for field in dataclasses.fields(batch)))


def train(
    corpus: Corpus, tokenizer_model: bytes, settings: Settings, report: Callable[[str], None]
) -> PersimmonForCausalLM:
    """Trains a model from scratch and returns it; `report` gets the progress."""
    torch.set_num_threads(settings.threads)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    packer = RowPacker(DocumentSampler(corpus, processor, settings.seed), settings.seed + 1)
    model = make_model(settings)
    report(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    update = make_update(model, settings)
    started = time.monotonic()
    step = tokens = 0
    smooth_loss: float | None = None
    while tokens < settings.tokens:
        progress = tokens / settings.tokens
        length = MAX_POSITION_EMBEDDINGS if progress > 1 - LONG_ROWS_SHARE else settings.row_length
        rows = max(1, settings.batch_tokens // length)
        batch = to_device(packer.batch(rows, length, LEARNT_SHARE), settings.device)
        loss = float(update(batch, learning_rate_factor(step, progress)))
        smooth_loss = loss if smooth_loss is None else 0.95 * smooth_loss + 0.05 * loss
        step += 1
        tokens += rows * length
        if step % 20 == 0:
            seconds = time.monotonic() - started
            report(f"step {step}  {tokens / 1e6:.2f} M tokens  {seconds:.0f} s  loss {smooth_loss:.4f}")
    report(f"trained on {tokens} tokens in {step} steps, {time.monotonic() - started:.0f} s")
    return model
