#include "decode.h"

#include <cmath>
#include <map>

#include "fill.h"

namespace adept::bench {
namespace {

constexpr int64_t kShortestLength = 256;  // the positions that a captured step is at least made for
constexpr int64_t kHeadCalls = 4;         // in a graph of the lm_head alone
constexpr int64_t kForever = int64_t{1} << 62;
constexpr uint32_t kInputSeed = 1000000;

std::vector<int64_t> counting(int64_t count) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(i);
  return values;
}

template <class T>
std::vector<T> same(int64_t count, T value) {
  return std::vector<T>(static_cast<size_t>(count), value);
}

// Powers of two, as the runtime captures its graphs for.
int64_t longest_of(int64_t positions) {
  int64_t longest = kShortestLength;
  while (longest < positions) longest *= 2;
  return longest;
}

template <class T>
std::vector<float> as_floats(const Buffer<T>& buffer) {
  const std::vector<T> values = buffer.download();
  return std::vector<float>(values.begin(), values.end());
}

}  // namespace

State::State(const Shapes& shapes, int64_t tokens, int64_t positions, const std::string& sampling)
    : tokens(tokens),
      x(tokens * shapes.hidden),
      y(tokens * shapes.hidden),
      qkv(tokens * 3 * shapes.hidden),
      q(tokens * shapes.hidden),
      attended(tokens * shapes.hidden),
      after(tokens * shapes.hidden),
      logits(tokens * shapes.vocab),
      chosen(tokens),
      ids(tokens),
      slots(counting(tokens)),
      positions(same<int64_t>(tokens, positions - 1)),
      lengths(same<int64_t>(tokens, positions)),
      advancing_slots(counting(tokens)),
      advancing_positions(same<int64_t>(tokens, positions - 1)),
      limits(same<int64_t>(tokens, kForever)),
      step_counts(same<int64_t>(tokens, 0)),
      neuron_counts(same<int64_t>(2, 0)),
      token_ring(tokens * kRingDepth),
      ends(same<uint8_t>(tokens * shapes.vocab, 0)),
      seen(same<uint8_t>(tokens * shapes.vocab, 0)),
      logit_bias(same<float>(tokens * shapes.vocab, 0)),
      token_counts(same<int32_t>(tokens * shapes.vocab, 0)),
      temperature(same<float>(tokens, sampling == "top-p" || sampling == "top-k" ? 0.8f : 0)),
      top_p(same<float>(tokens, sampling == "top-p" ? 0.9f : 1)),
      min_p(same<float>(tokens, 0)),
      penalty(same<float>(tokens, 1)),
      frequency_penalty(same<float>(tokens, 0)),
      presence_penalty(same<float>(tokens, 0)),
      is_biased(same<uint8_t>(tokens, 0)),
      top_k(same<int64_t>(tokens, sampling == "top-k" ? 50 : 0)),
      seed(same<int64_t>(tokens, 5)) {
  reset();
}

void State::reset() {
  // Each is what one operator reads when it runs alone.
  uint32_t seed_of = kInputSeed;
  for (Buffer<float>* inputs : {&x, &y, &qkv, &q, &attended}) fill(*inputs, 0, std::sqrt(3.0f), seed_of++);
  fill(logits, 0, 5, seed_of);
  const std::vector<int64_t> first = counting(tokens);
  ids.upload(first);
  chosen.upload(first);
  neuron_counts.upload({0, 0});
}

Decode::Decode(const Shapes& shapes, const Model* model, const Tables& tables, const Caches* caches, State& state,
               cudaStream_t stream)
    : shapes_(shapes),
      model_(model),
      tables_(tables),
      caches_(caches),
      state_(state),
      stream_(stream),
      workspace_(0),
      counters_(same<int64_t>(cuda::decode_counters(state.tokens, shapes.hidden, shapes.heads), 0)) {}

int64_t Decode::queue(const Case& item) {
  using OfLayer = void (Decode::*)(int64_t);
  using Alone = void (Decode::*)();
  static const std::map<std::string, OfLayer> of_layer = {{"layernorm_qkv", &Decode::layernorm_qkv},
                                                          {"rotary_append", &Decode::rotary_append},
                                                          {"decode_attention", &Decode::decode_attention},
                                                          {"linear_residual", &Decode::linear_residual},
                                                          {"mlp", &Decode::mlp}};
  static const std::map<std::string, Alone> alone = {{"lm_head", &Decode::lm_head},
                                                     {"sample", &Decode::sample},
                                                     {"embed", &Decode::embed},
                                                     {"update_decode_state", &Decode::update_decode_state}};
  if (const auto found = of_layer.find(item.name); found != of_layer.end()) {
    for (int64_t i = 0; i < shapes_.layers; ++i) (this->*found->second)(i);
    return shapes_.layers;
  }
  if (item.name == "step") {
    step(item);
    return 1;
  }
  if (item.name == "layer") {
    layers(item);
    return shapes_.layers;
  }
  // What takes no time is called often, so that the start of a graph does not count; no cache holds the lm_head.
  const int64_t calls = item.name == "lm_head" ? kHeadCalls : shapes_.layers;
  for (int64_t i = 0; i < calls; ++i) (this->*alone.at(item.name))();
  return calls;
}

void Decode::poison(const Case& item) {
  const bool all = item.name == "step";
  if (item.name == "layer") {
    for (Buffer<float>* buffer : {&state_.qkv, &state_.q, &state_.attended, &state_.y, &state_.after}) buffer->poison();
  }
  const std::vector<std::pair<const char*, Buffer<float>*>> floats = {
      {"layernorm_qkv", &state_.qkv}, {"rotary_append", &state_.q}, {"decode_attention", &state_.attended},
      {"linear_residual", &state_.y}, {"mlp", &state_.x},           {"embed", &state_.x},
      {"lm_head", &state_.logits},    {"", &state_.after}};
  for (const auto& [name, buffer] : floats)
    if (all || item.name == name) buffer->poison();
  if (all || item.name == "sample") state_.chosen.poison();
  if (item.name == "update_decode_state") state_.ids.poison();
}

std::vector<float> Decode::output(const Case& item) const {
  const std::string& name = item.name;
  if (name == "layernorm_qkv") return state_.qkv.download();
  if (name == "rotary_append") return state_.q.download();
  if (name == "decode_attention") return state_.attended.download();
  if (name == "linear_residual") return state_.y.download();
  if (name == "layer" && item.in_tiles()) return state_.after.download();
  if (name == "mlp" || name == "layer" || name == "embed") return state_.x.download();
  if (name == "sample") return as_floats(state_.chosen);
  if (name == "update_decode_state") return as_floats(state_.ids);
  return state_.logits.download();
}

// A workspace is never given back while a graph may name it.
void* Decode::workspace(int64_t bytes) {
  if (bytes > workspace_bytes_) {
    outgrown_.push_back(std::move(workspace_));
    workspace_ = DeviceMemory(static_cast<size_t>(bytes));
    workspace_bytes_ = bytes;
  }
  return workspace_.get();
}

void Decode::layernorm_qkv(int64_t i) {
  const Layer& layer = model_->layer(i);
  const Linear linear{state_.x.get(), state_.tokens, layer.input_norm.norm(), layer.qkv.matrix(), layer.qkv_bias.get(),
                      nullptr,        false,         state_.qkv.get()};
  check(cuda::linear(linear, workspace(cuda::linear_workspace_bytes(linear)), stream_), "layernorm_qkv");
}

void Decode::rotary_append(int64_t i) {
  const NormWeights& q_norm = model_ != nullptr ? model_->layer(i).q_norm : tables_.q_norm;
  const NormWeights& k_norm = model_ != nullptr ? model_->layer(i).k_norm : tables_.k_norm;
  const RotaryAppend append{state_.qkv.get(),       state_.tokens,     q_norm.norm(),        k_norm.norm(),
                            tables_.cos.get(),      tables_.sin.get(), shapes_.rotary() / 2, state_.slots.get(),
                            state_.positions.get(), caches_->layer(i), state_.q.get()};
  check(cuda::rotary_append(append, stream_), "rotary_append");
}

void Decode::decode_attention(int64_t i) {
  const DecodeAttention attention{state_.q.get(),
                                  state_.tokens,
                                  caches_->layer(i),
                                  state_.slots.get(),
                                  state_.lengths.get(),
                                  longest_of(caches_->positions()),
                                  1 / std::sqrt(static_cast<float>(shapes_.head_dim())),
                                  state_.attended.get()};
  check(cuda::decode_attention(attention, workspace(cuda::decode_attention_workspace_bytes(attention)), stream_),
        "decode_attention");
}

void Decode::linear_residual(int64_t i) {
  const Layer& layer = model_->layer(i);
  const Linear linear{
      state_.attended.get(), state_.tokens, {nullptr, nullptr, 0}, layer.dense.matrix(), layer.dense_bias.get(),
      state_.x.get(),        false,         state_.y.get()};
  check(cuda::linear(linear, workspace(cuda::linear_workspace_bytes(linear)), stream_), "linear_residual");
}

void Decode::mlp(int64_t i) {
  const Layer& layer = model_->layer(i);
  const Mlp mlp{state_.y.get(),      state_.tokens,       layer.mlp_norm.norm(), layer.up.matrix(),
                layer.up_bias.get(), layer.down.matrix(), layer.down_bias.get(), state_.neuron_counts.get(),
                state_.x.get(),      state_.slots.get()};
  check(cuda::mlp(mlp, workspace(cuda::mlp_workspace_bytes(mlp)), stream_), "mlp");
}

void Decode::lm_head() { lm_head(state_.x); }

void Decode::lm_head(const Buffer<float>& x) {
  const Linear linear{x.get(), state_.tokens, model_->final_norm().norm(), model_->head().matrix(), nullptr,
                      nullptr, false,         state_.logits.get()};
  check(cuda::linear(linear, workspace(cuda::linear_workspace_bytes(linear)), stream_), "lm_head");
}

void Decode::sample() {
  const cuda::Sample sample{state_.logits.get(),
                            state_.tokens,
                            shapes_.vocab,
                            state_.slots.get(),
                            state_.positions.get(),
                            state_.tokens,
                            state_.temperature.get(),
                            state_.top_k.get(),
                            state_.top_p.get(),
                            state_.min_p.get(),
                            state_.penalty.get(),
                            state_.frequency_penalty.get(),
                            state_.presence_penalty.get(),
                            reinterpret_cast<const bool*>(state_.is_biased.get()),
                            state_.seed.get(),
                            state_.logit_bias.get(),
                            reinterpret_cast<bool*>(state_.seen.get()),
                            state_.token_counts.get(),
                            state_.chosen.get()};
  check(cuda::sample(sample, workspace(cuda::sample_workspace_bytes(sample)), stream_), "sample");
}

void Decode::embed() {
  const Matrix table{Format::kFloat16, tables_.embedding.get(), nullptr, shapes_.vocab, shapes_.hidden};
  check(cuda::embed({table, state_.ids.get(), state_.tokens, state_.x.get()}, stream_), "embed");
}

void Decode::update_decode_state() {
  const UpdateDecodeState operands{state_.chosen.get(),
                                   state_.tokens,
                                   state_.ids.get(),
                                   state_.advancing_slots.get(),
                                   state_.advancing_positions.get(),
                                   state_.limits.get(),
                                   reinterpret_cast<const bool*>(state_.ends.get()),
                                   state_.tokens,
                                   shapes_.vocab,
                                   state_.step_counts.get(),
                                   state_.token_ring.get(),
                                   kRingDepth};
  check(cuda::update_decode_state(operands, stream_), "update_decode_state");
}

cuda::DecodeLayers Decode::all_layers() const {
  cuda::DecodeLayers op = {};
  op.x = state_.x.get();
  op.tokens = state_.tokens;
  op.hidden = shapes_.hidden;
  op.intermediate = shapes_.intermediate;
  op.format = model_->format();
  op.eps = kEps;
  op.cos = tables_.cos.get(), op.sin = tables_.sin.get(), op.half = shapes_.rotary() / 2;
  op.slots = state_.slots.get(), op.positions = state_.positions.get();
  op.cache = caches_->layer(0);
  op.longest = caches_->positions();
  op.scale = 1 / std::sqrt(static_cast<float>(shapes_.head_dim()));
  op.neuron_counts = state_.neuron_counts.get();
  op.counters = reinterpret_cast<uint64_t*>(counters_.get());
  op.out = state_.after.get();
  op.layer_count = static_cast<int>(shapes_.layers);
  for (int64_t i = 0; i < shapes_.layers; ++i) {
    const Layer& layer = model_->layer(i);
    const Norm input = layer.input_norm.norm(), q = layer.q_norm.norm(), k = layer.k_norm.norm(),
               mlp = layer.mlp_norm.norm();
    const Matrix qkv = layer.qkv.matrix(), dense = layer.dense.matrix(), up = layer.up.matrix(),
                 down = layer.down.matrix();
    op.layers[i] = {input.gamma,
                    input.beta,
                    qkv.values,
                    qkv.scales,
                    layer.qkv_bias.get(),
                    q.gamma,
                    q.beta,
                    k.gamma,
                    k.beta,
                    dense.values,
                    dense.scales,
                    layer.dense_bias.get(),
                    mlp.gamma,
                    mlp.beta,
                    up.values,
                    up.scales,
                    layer.up_bias.get(),
                    down.values,
                    down.scales,
                    layer.down_bias.get()};
  }
  return op;
}

std::string Decode::refuses_one_kernel() const {
  const char* const reason = cuda::refuses_one_kernel(all_layers());
  return reason == nullptr ? "" : reason;
}

void Decode::layers(const Case& item) {
  if (!item.in_tiles()) {
    for (int64_t i = 0; i < shapes_.layers; ++i) {
      layernorm_qkv(i);
      rotary_append(i);
      decode_attention(i);
      linear_residual(i);
      mlp(i);
    }
    return;
  }
  if (caches_->distinct() < shapes_.layers) throw OutOfMemory("decode_layers takes a cache for each layer");
  const cuda::DecodeLayers op = all_layers();
  check(cuda::decode_layers(op, item.layout == "one", workspace(cuda::decode_layers_workspace_bytes(op)), stream_),
        "decode_layers");
}

void Decode::step(const Case& item) {
  embed();
  layers(item);
  lm_head(item.in_tiles() ? state_.after : state_.x);
  sample();
  update_decode_state();
}

}  // namespace adept::bench
