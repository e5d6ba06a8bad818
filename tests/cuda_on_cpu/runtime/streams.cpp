#include "streams.h"

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "device.h"

// What the runtime's handles point to.
struct CUgraph_st {
  std::vector<cuda_on_cpu::Work> work;
};

struct CUgraphExec_st {
  std::vector<cuda_on_cpu::Work> work;
};

struct CUstream_st {
  std::unique_ptr<CUgraph_st> captured;  // null but during a capture
};

struct CUevent_st {
  std::chrono::steady_clock::time_point at;
  bool is_recorded = false;
};

namespace cuda_on_cpu {

bool is_capturing(cudaStream_t stream) { return stream != nullptr && stream->captured != nullptr; }

cudaError_t queue(cudaStream_t stream, Work work) {
  if (!is_capturing(stream)) return work();
  stream->captured->work.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

// What waits is refused during a capture, as the driver does.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return remember(is_capturing(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || is_capturing(stream)) return remember(cudaErrorStreamCaptureUnsupported);
  stream->captured = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!is_capturing(stream)) return remember(cudaErrorStreamCaptureUnsupported);
  *graph = stream->captured.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (is_capturing(stream)) return remember(cudaErrorStreamCaptureUnsupported);
  for (const Work& work : executable->work)
    if (const cudaError_t error = work()) return error;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (is_capturing(stream)) return remember(cudaErrorNotSupported);  // nobody has needed it yet
  event->at = std::chrono::steady_clock::now();
  event->is_recorded = true;
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t before, cudaEvent_t after) {
  if (!before->is_recorded || !after->is_recorded) return remember(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(after->at - before->at).count();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
}
