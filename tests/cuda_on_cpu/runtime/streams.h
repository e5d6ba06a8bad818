// Streams, and graphs that are captured from them: a stream runs what is queued at once, or keeps it for a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace cuda_on_cpu {

using Work = std::function<cudaError_t()>;

bool is_capturing(cudaStream_t stream);

// Runs the work, or keeps it for the graph that is captured from the stream.
cudaError_t queue(cudaStream_t stream, Work work);

}  // namespace cuda_on_cpu
