"""Steps that are captured, replayed, launched ahead and discarded, against one step after the other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from fake_graph import FakeCapture, NotCapturableError
from hypothesis import given
from hypothesis import strategies as st

from adept_fast import ParameterError, Runtime, SamplingParams, ops
from adept_fast.engine.engine import Engine
from adept_fast.engine.graphs import Captured, CaptureError, CudaGraphRunner, LaunchPolicy
from adept_fast.engine.model_runner import ModelRunner
from adept_fast.memory.graph_buckets import MIN_LENGTH, GraphBuckets
from adept_fast.memory.workspace import max_rows
from adept_fast.sampling import Sampler

CONTEXT = 2100  # no power of two, so the last bucket is the odd one
SLOTS = 5
EDGES = (31, 32, 33, 255, 256, 257, 511, 512, 513, 1024, 2047, 2048, 2049, CONTEXT - 2)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    config = small_config(max_position_embeddings=CONTEXT)
    path = tmp_path_factory.mktemp("graphs")
    write_huggingface(path, config, random_tensors(config), demo_tokenizer())
    return Runtime.load(path, device="cpu", max_batch_size=SLOTS, progress=False)


def policies() -> dict[str, LaunchPolicy]:
    rows = max_rows(SLOTS)
    few, every = GraphBuckets.few(rows, CONTEXT), GraphBuckets.all(rows, CONTEXT)
    return {
        "as on a CPU": LaunchPolicy(every, 1),
        "two in flight": LaunchPolicy(every, 2),
        "the eager twin": LaunchPolicy(few, 2),
        "far ahead": LaunchPolicy(few, 9),
        "captured": LaunchPolicy(few, 2, FakeCapture(), required=True),
        "captured, far ahead": LaunchPolicy(few, 5, FakeCapture(), required=True),
    }


KINDS = ["as on a CPU", "two in flight", "the eager twin", "far ahead", "captured", "captured, far ahead"]


def engine_with(runtime: Runtime, policy: LaunchPolicy, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that launches its steps so, which the runtime is given."""
    old = runtime.engine.runner
    runner = ModelRunner(old.model, old.cache, runtime.tokenizer.vocab_size, policy)
    engine = Engine(runner, runtime.tokenizer)
    monkeypatch.setattr(runtime, "engine", engine)
    return engine


@pytest.fixture(params=KINDS)
def launched(request: pytest.FixtureRequest, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The runtime, which launches its steps in one of these ways."""
    engine_with(runtime, policies()[request.param], monkeypatch)
    return runtime


PLAIN: dict[tuple[tuple[int, ...], SamplingParams], list[int]] = {}


def plain_loop(runtime: Runtime, prompt: list[int], params: SamplingParams) -> list[int]:
    """What every loop has to give; the weights are the same for every way of launching."""
    asked = (tuple(prompt), params)
    if asked not in PLAIN:
        PLAIN[asked] = one_step_after_the_other(runtime, prompt, params)
    return PLAIN[asked]


@torch.inference_mode()
def one_step_after_the_other(runtime: Runtime, prompt: list[int], params: SamplingParams) -> list[int]:
    """On slot 0, each looked at before the next."""
    model, cache, slot = runtime.engine.runner.model, runtime.engine.runner.cache, torch.tensor([0])
    sampler = Sampler(1, runtime.tokenizer.vocab_size, model.device)
    logits = model.prefill(torch.tensor(prompt), cache, 0)
    room = CONTEXT + 1 - len(prompt)
    most = room if params.max_new_tokens is None else min(room, params.max_new_tokens)
    found: list[int] = []
    while True:
        position = torch.tensor([len(prompt) + len(found)])
        sampler.start(0, params, prompt, generated_ids=found)
        token_id = int(sampler.choose(logits, slot, position - 1))
        is_end = token_id == runtime.tokenizer.eos_id and not params.ignore_eos
        if is_end or token_id in params.stop_token_ids:
            return found
        found.append(token_id)
        if len(found) == most:
            return found
        logits = model.decode_step(torch.tensor([token_id]), slot, position, cache, int(position) + 1)


def prompt_of(length: int) -> list[int]:
    return [5 + (7 * at + length) % 4000 for at in range(length)]


SETTINGS = {
    "greedy": SamplingParams(max_new_tokens=4, ignore_eos=True),
    "drawn": SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=1.1, top_p=0.9, seed=3),
}


@pytest.mark.slow
def test_every_bucket_edge_is_crossed(launched: Runtime, request: pytest.FixtureRequest) -> None:
    """In each way, by greedy choice and drawn in turn, and in the next way the other way round."""
    turn = KINDS.index(request.node.callspec.params["launched"])
    for at, length in enumerate(EDGES, start=turn):
        params = list(SETTINGS.values())[at % 2]
        (found,) = launched.generate([prompt_of(length - 2)], params)
        assert found.token_ids == plain_loop(launched, prompt_of(length - 2), params), length


@pytest.mark.slow
def test_the_context_is_filled_to_its_end(launched: Runtime) -> None:
    params = SamplingParams(max_new_tokens=None, ignore_eos=True)
    for length in (CONTEXT - 9, CONTEXT - 1, CONTEXT):
        (found,) = launched.generate([prompt_of(length)], params)
        assert found.finish_reason == "length"
        assert found.token_ids == plain_loop(launched, prompt_of(length), params)
        assert len(found.token_ids) == CONTEXT + 1 - length


def test_batches_of_unequal_lengths_that_end_one_by_one(launched: Runtime) -> None:
    prompts = [prompt_of(length) for length in (250, 3, 509, 40, 7, 1, 90, 255, 12)]
    params = [
        SamplingParams(
            max_new_tokens=3 + 5 * at % 17, ignore_eos=True, temperature=0.4 * (at % 3), top_k=at, seed=at
        )
        for at in range(len(prompts))
    ]
    params[2] = dataclasses.replace(params[2], logit_bias={5: 3.0, 9: -100.0})
    params[3] = dataclasses.replace(params[3], frequency_penalty=0.8, presence_penalty=-0.3)
    params[4] = dataclasses.replace(params[4], repetition_penalty=1.4)
    params[6] = dataclasses.replace(params[6], presence_penalty=1.5, logit_bias={8: 5.0})
    for prompt, settings, found in zip(prompts, params, launched.generate(prompts, params), strict=True):
        assert found.token_ids == plain_loop(launched, prompt, settings)


def test_what_was_launched_past_an_end_is_discarded(launched: Runtime) -> None:
    prompts = [prompt_of(length) for length in (6, 30, 11)]
    free = SamplingParams(max_new_tokens=20, ignore_eos=True)
    texts = launched.generate(prompts, free)
    for at in (0, 3, 11):
        # A token that the device knows to end a text, and a string of which the host alone knows.
        by_token = dataclasses.replace(free, stop_token_ids=(texts[0].token_ids[at], 10**9))
        found = launched.generate(prompts, by_token)
        assert [g.token_ids for g in found] == [plain_loop(launched, p, by_token) for p in prompts]
        by_text = dataclasses.replace(free, stop=texts[1].text[at : at + 3])
        stopped = launched.generate(prompts, by_text)[1]
        assert stopped.text == texts[1].text[: texts[1].text.index(texts[1].text[at : at + 3])]
        assert stopped.finish_reason == "stop"
    assert [g.token_ids for g in launched.generate(prompts, free)] == [g.token_ids for g in texts]


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 4, 15])
def test_guesses_change_nothing(launched: Runtime, drafts: int) -> None:
    prompts = [prompt_of(9) * 3, [5, 6, 7] * 90, prompt_of(30)]
    for settings in SETTINGS.values():
        params = dataclasses.replace(settings, max_new_tokens=25)
        guessing = dataclasses.replace(params, prompt_lookup=drafts)
        mixed = [guessing, params, guessing]
        for prompt, found in zip(prompts, launched.generate(prompts, mixed), strict=True):
            assert found.token_ids == plain_loop(launched, prompt, params)


def test_other_settings_are_not_captured_anew(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture()
    few = GraphBuckets.few(max_rows(SLOTS), CONTEXT)
    runner = engine_with(runtime, LaunchPolicy(few, 2, capture, required=True), monkeypatch).runner
    many = [
        SamplingParams(max_new_tokens=6, ignore_eos=True),
        SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.7, seed=5),
        SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=1.4, top_k=30, min_p=0.01, seed=6),
        SamplingParams(max_new_tokens=6, ignore_eos=True, repetition_penalty=1.8),
        SamplingParams(max_new_tokens=6, ignore_eos=True, logit_bias={5: 4.0, 6: -100.0}),
        SamplingParams(max_new_tokens=6, ignore_eos=True, frequency_penalty=1.5, presence_penalty=0.5),
        SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.8, presence_penalty=-2.0, seed=8),
        SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.9, top_p=0.5, seed=7),
    ]
    for length, params in enumerate(many, start=3):
        (found,) = runtime.generate([prompt_of(length)], params)
        assert found.token_ids == plain_loop(runtime, prompt_of(length), params)
    assert (capture.captures, capture.replays) == (1, 5 * len(many))
    report = runtime.captures()
    assert report is not None
    assert report.shapes == [(1, MIN_LENGTH)]
    assert report.seconds > 0
    sampler = runner._sampler
    held = (*sampler._settings.values(), sampler._bias)  # the double knows what a step writes as its own
    for tensor in (*vars(runner._state.rows(1)).values(), runner.cache.data, *held):
        assert tensor.untyped_storage().data_ptr() in capture.inputs


def runner_in_flight(runtime: Runtime, steps_in_flight: int, monkeypatch: pytest.MonkeyPatch) -> ModelRunner:
    """A runner of exact shapes, which the runtime is given."""
    every = GraphBuckets.all(max_rows(SLOTS), CONTEXT)
    return engine_with(runtime, LaunchPolicy(every, steps_in_flight), monkeypatch).runner


class Launches:
    """The shapes of a runner's steps, each with the longest that a sequence in it is by then."""

    def __init__(self, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int, int]] = []
        self._runner = runner
        self._launch = runner.step_runner.launch
        monkeypatch.setattr(runner.step_runner, "launch", self)

    def __call__(self, rows: int, length: int) -> torch.Tensor:
        state = self._runner._state.rows(rows)
        longest = int(torch.where(state.slots >= 0, state.positions + 1, 0).max())
        self.shapes.append((rows, length, longest))
        return self._launch(rows, length)


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_steps_are_launched_ahead_of_what_was_read(
    runtime: Runtime, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(runner_in_flight(runtime, in_flight, monkeypatch), monkeypatch)
    stream = runtime.stream(prompt_of(4), max_new_tokens=9, ignore_eos=True)
    ahead = [len(launches.shapes) + 1 - len(stream.result.token_ids) for _ in stream]
    assert max(ahead) == in_flight - 1
    assert launches.shapes == [(1, length, length) for length in range(5, 13)]  # no more than tokens to come


@pytest.mark.parametrize("in_flight", [1, 4])
def test_rows_fall_away_with_their_sequences(
    runtime: Runtime, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(runner_in_flight(runtime, in_flight, monkeypatch), monkeypatch)
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (9, 2, 5)]
    runtime.generate([prompt_of(4), prompt_of(90), prompt_of(30)], params)
    rows = [rows for rows, _, _ in launches.shapes]
    assert rows == sorted(rows, reverse=True)
    assert (rows[0], rows[-1]) == (3, 1)
    assert all(longest <= length for _, length, longest in launches.shapes)


def test_the_device_knows_where_texts_end(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a token, and by their length: steps past it that were launched already find no row to go on with."""
    prompts = [prompt_of(30), prompt_of(6), prompt_of(11)]
    free = SamplingParams(max_new_tokens=30, ignore_eos=True)
    short = dataclasses.replace(free, max_new_tokens=3)
    third = runtime.generate(prompts, free)[1].token_ids[2]
    runner = runner_in_flight(runtime, 9, monkeypatch)
    found = runtime.generate(prompts, [free, dataclasses.replace(free, stop_token_ids=(third,)), short])
    assert [len(generation.token_ids) for generation in found] == [30, 2, 3]
    # The others ended at their second step; eight more were launched by then.
    steps = runner._state._steps
    assert steps[1:3] == [10, 10]
    assert [runner._state.read(row, step) for row in (1, 2) for step in (3, 6, 10)] == [ops.ABSENT] * 6


def test_a_request_that_joins_steps_in_flight_harms_no_other(launched: Runtime) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    left = launched.stream(prompt_of(20), params)
    next(left)
    next(left)
    (found,) = launched.generate([prompt_of(8)], params)
    assert found.token_ids == plain_loop(launched, prompt_of(8), params)
    list(left)
    assert left.result.token_ids == plain_loop(launched, prompt_of(20), params)


def test_logprobs_are_those_of_their_own_step(launched: Runtime) -> None:
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, logprobs=3)
    plain = dataclasses.replace(params, logprobs=None)
    prompts = [prompt_of(6), prompt_of(19)]
    found = launched.generate(prompts, [params, plain])
    assert found[1].logprobs is None
    assert found[0].logprobs is not None
    assert len(found[0].logprobs) == 8
    for at, (entry, token_id) in enumerate(zip(found[0].logprobs, found[0].token_ids, strict=True)):
        before = torch.tensor(prompts[0] + found[0].token_ids[:at])
        logprobs = launched.engine.runner.model.prefill(before, launched.engine.runner.cache, 0)[
            0
        ].log_softmax(-1)
        assert entry.token_id == entry.top[0][0] == token_id
        assert entry.logprob == pytest.approx(float(logprobs[token_id]), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


@given(st.integers(1, 40), st.integers(1, 20_000), st.data())
def test_shapes_have_room_and_little_more(max_rows: int, max_seq_len: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, max_rows))
    length = data.draw(st.integers(1, max_seq_len))
    few = GraphBuckets.few(max_rows, max_seq_len)
    found_rows, found_length = few.fitting(rows, length)
    assert rows <= found_rows <= max_rows
    assert length <= found_length <= max_seq_len
    assert found_length <= max(2 * length, MIN_LENGTH)
    assert found_rows < 2 * rows or found_rows == max_rows
    assert GraphBuckets.all(max_rows, max_seq_len).fitting(rows, length) == (rows, length)


def test_all_shapes_are_captured_ahead(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture()
    few = GraphBuckets.few(max_rows(SLOTS), CONTEXT)
    engine_with(runtime, LaunchPolicy(few, 2, capture, required=True), monkeypatch)
    runtime.warm_up()
    shapes = {(rows, length) for rows in (1, 2, 4, 8) for length in (256, 512, 1024, 2048, CONTEXT)}
    report = runtime.captures()
    assert report is not None
    assert set(report.shapes) == shapes
    runtime.warm_up()
    assert capture.captures == len(shapes)


class TestFailures:
    SHAPES = GraphBuckets.few(16, 512)

    def graphs(self, error: Exception, *, required: bool = False) -> CudaGraphRunner:
        class Failing:
            bytes_held = 0

            def __call__(self, warmup: object, step: object) -> Captured:
                raise error

        return CudaGraphRunner(
            lambda rows, length: torch.full((rows, 1), float(length)),
            lambda rows, length: torch.zeros(rows, 1),
            self.SHAPES,
            Failing(),
            required=required,
        )

    def test_steps_are_launched_eagerly_and_that_is_said_once(self, recwarn: pytest.WarningsRecorder) -> None:
        graphs = self.graphs(RuntimeError("operation not permitted"))
        for shape in ((1, 256), (4, 512), (1, 256)):
            assert graphs.launch(*shape).tolist() == [[float(shape[1])]] * shape[0]
        (warning,) = recwarn
        said = "a decode step of 1 rows over 256 positions could not be captured: operation not permitted"
        assert str(warning.message).startswith(said)
        assert graphs.report.failure == said

    def test_where_graphs_are_required_it_is_an_error(self) -> None:
        with pytest.raises(CaptureError, match="of 2 rows over 512 positions could not be captured: no"):
            self.graphs(RuntimeError("no"), required=True).launch(2, 512)

    def test_memory_that_is_not_there_is_not_hidden(self) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            self.graphs(torch.OutOfMemoryError("full")).launch(2, 512)

    def test_a_way_that_is_not_known_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="cuda_graphs is 'on'; expected auto, required, off"):
            Runtime.load("demo", cuda_graphs="on", progress=False)


class TestTheDouble:
    """What stands in for CUDA's capture refuses what that would, and repeats only what it would."""

    @pytest.mark.parametrize(
        "step",
        [
            lambda x: x * x.sum().item(),
            lambda x: x if x.any() else -x,
            lambda x: x[x > 0],
            lambda x: x + torch.tensor([1.0, 2.0]),
            lambda x: x * len(x.tolist()),
            lambda x: torch.cuda.synchronize() or x,
        ],
    )
    def test_what_needs_the_host_is_refused(self, step: object) -> None:
        x = torch.ones(2)
        with pytest.raises(NotCapturableError):
            FakeCapture()(lambda: x, lambda: step(x))  # type: ignore[operator]

    def test_a_number_of_the_host_stays_what_it_was(self) -> None:
        x, number = torch.zeros(2), 1

        def step() -> torch.Tensor:
            return x.add_(number) * 10

        captured = FakeCapture()(lambda: x, step)
        captured.replay()
        number = 100
        captured.replay()
        assert captured.logits.tolist() == [20.0, 20.0]

    def test_a_tensor_that_was_replaced_is_not_seen(self) -> None:
        held = {"x": torch.ones(2)}
        captured = FakeCapture()(lambda: held["x"], lambda: held["x"] * 3)
        captured.replay()
        held["x"].mul_(2)
        captured.replay()
        assert captured.logits.tolist() == [6.0, 6.0]
        held["x"] = torch.full((2,), 7.0)
        captured.replay()
        assert captured.logits.tolist() == [6.0, 6.0]
