// Memory in which the CTAs of a launch tell each other numbers, and whose it is.
//
// Launches of one stream follow each other and leave it as it was, so they share theirs. A graph may run beside the
// stream that it was captured in, so a capture has its own, until the graph and all that was made of it are gone.
#include "handover.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

namespace normgate {
namespace {

constexpr int64_t kFewestPlaces = 4096;

// A device, a capture or 0, and the stream: by its id, for handles come again, or in a capture, which no stream
// outlives, by its handle.
using Owner = std::tuple<int, unsigned long long, unsigned long long>;

struct Memory {
  uint32_t* tickets;
  float* places;
  int64_t num_places;
};

struct Registry {
  std::mutex mutex;
  std::map<Owner, std::vector<Memory>> owned;  // the last is in use; launches under way may use those before
  std::map<int, std::vector<Memory>> free;     // by device

  std::mutex gone_mutex;    // under which nobody calls CUDA
  std::vector<Owner> gone;  // captures whose graphs are; their memory is free
};

Registry& registry() {
  static Registry* const all = new Registry;  // never destroyed: graphs may outlive what is
  return *all;
}

// Zeroes and empties. On a stream of its own, and in a way that does not end a capture under way.
cudaError_t allocate(int64_t num_places, Memory* memory) {
  const size_t bytes = kTickets * sizeof(uint32_t) + num_places * sizeof(float);
  void* base = nullptr;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaMalloc(&base, bytes);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(base, 0xff, bytes, stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(base, 0, kTickets * sizeof(uint32_t), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) cudaStreamDestroy(stream);
  if (error != cudaSuccess) {
    cudaFree(base);
    return error;
  }
  auto* tickets = static_cast<uint32_t*>(base);
  *memory = {tickets, reinterpret_cast<float*>(tickets + kTickets), num_places};
  return cudaSuccess;
}

cudaError_t allocate_beside_captures(int64_t num_places, Memory* memory) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return error;
  error = allocate(num_places, memory);
  const cudaError_t restored = cudaThreadExchangeStreamCaptureMode(&mode);
  return error != cudaSuccess ? error : restored;
}

// A graph, and all that was made of it, is gone. CUDA calls this from a thread that must not call CUDA, nor wait for
// one that does.
void note_gone(void* data) {
  const std::unique_ptr<Owner> owner(static_cast<Owner*>(data));
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.gone_mutex);
  all.gone.push_back(*owner);
}

void free_memory_of_gone(Registry& all) {
  std::vector<Owner> gone;
  {
    const std::lock_guard<std::mutex> lock(all.gone_mutex);
    gone.swap(all.gone);
  }
  for (const Owner& owner : gone) {
    const auto found = all.owned.find(owner);
    if (found == all.owned.end()) continue;
    std::vector<Memory>& free = all.free[std::get<0>(owner)];
    free.insert(free.end(), found->second.begin(), found->second.end());
    all.owned.erase(found);
  }
}

// Has a graph keep its owner's memory.
cudaError_t keep_with(cudaGraph_t graph, const Owner& owner) {
  auto* data = new Owner(owner);
  cudaUserObject_t object = nullptr;
  cudaError_t error = cudaUserObjectCreate(&object, data, note_gone, 1, cudaUserObjectNoDestructorSync);
  if (error != cudaSuccess) {
    delete data;
    return error;
  }
  error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (error != cudaSuccess) cudaUserObjectRelease(object, 1);
  return error;
}

}  // namespace

cudaError_t prepare_handover(int64_t places, normgate_args* args) {
  const auto stream = static_cast<cudaStream_t>(args->stream);
  int device = 0;
  unsigned long long stream_id = 0, capture_id = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaStreamGetCaptureInfo(stream, &status, &capture_id, &graph);
  if (error != cudaSuccess) return error;
  const bool captures = status == cudaStreamCaptureStatusActive;
  if (captures) {
    stream_id = reinterpret_cast<uintptr_t>(stream);
  } else if ((error = cudaStreamGetId(stream, &stream_id)) != cudaSuccess) {
    return error;
  }
  const Owner owner(device, captures ? capture_id : 0, stream_id);

  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<Memory>& owned = all.owned[owner];
  if (owned.empty() || owned.back().num_places < places) {
    free_memory_of_gone(all);
    if (owned.empty() && captures && (error = keep_with(graph, owner)) != cudaSuccess) return error;
    std::vector<Memory>& free = all.free[device];
    const auto fits =
        std::find_if(free.begin(), free.end(), [&](const Memory& one) { return one.num_places >= places; });
    if (fits != free.end()) {
      owned.push_back(*fits);
      free.erase(fits);
    } else {
      int64_t rounded = kFewestPlaces;
      while (rounded < places) rounded *= 2;
      Memory memory;
      if ((error = allocate_beside_captures(rounded, &memory)) != cudaSuccess) return error;
      owned.push_back(memory);
    }
  }
  args->tickets = owned.back().tickets;
  args->places = owned.back().places;
  return cudaSuccess;
}

}  // namespace normgate
