#include "server/codec.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "kernels/problem_tensors.h"
#include "server/attend_reader.h"
#include "server/attend_tensors.h"
#include "wire/contract.h"
#include "wire/gather.h"
#include "wire/message_writer.h"

namespace flashbias::server {
namespace {

using wire::ResponseNumber;
using wire::StreamNumber;
using wire::TimingNumber;

class AttendStorage final : public ProblemStorage {
 public:
  // Once the problem has run.
  void ReleaseInputs() {
    upload = nullptr;
    input_block = HostBlock();
    regions.clear();
  }

  std::shared_ptr<void> keeps;          // first: it goes when the blocks have gone
  HostBlock input_block;                // the inputs that are in no region
  std::unique_ptr<UploadAhead> upload;  // of `input_block`, or null
  // The outputs that are in no region; not initialised: the backend writes every element.
  HostBlock output_block;
  std::vector<std::shared_ptr<const Region>> regions;
  std::vector<OutputTensor> outputs;
  std::vector<Sequence> sequences;
  std::vector<float> slopes;
};

// Places for tensors one after the other in a block, each as aligned as the block itself. Sizes are
// those of bytes that came, or as checked by ValidateAttend: sums of them cannot overflow.
class BlockLayout {
 public:
  size_t Add(size_t bytes) {
    const size_t begin = end_;
    end_ += (bytes + HostAllocator::kAlignment - 1) / HostAllocator::kAlignment *
            HostAllocator::kAlignment;
    return begin;
  }
  // At least one byte, so that no pointer into the block is null.
  size_t size() const { return std::max<size_t>(end_, 1); }

 private:
  size_t end_ = 0;
};

// A slice over memory that `storage` owns; it holds a reference until the transport is done.
grpc::Slice SliceOver(void* data, uint64_t bytes, const std::shared_ptr<ProblemStorage>& storage) {
  auto* reference = new std::shared_ptr<ProblemStorage>(storage);
  return grpc::Slice(
      data, bytes, [](void* held) { delete static_cast<std::shared_ptr<ProblemStorage>*>(held); },
      reference);
}

// Field 1 of every response.
void WriteTiming(const ResponseTiming& timing, wire::MessageWriter* message) {
  wire::MessageWriter writer;
  writer.Double(TimingNumber::kReceiveSeconds, absl::ToDoubleSeconds(timing.receive));
  writer.Double(TimingNumber::kQueueSeconds, absl::ToDoubleSeconds(timing.queue));
  writer.Double(TimingNumber::kComputeSeconds, absl::ToDoubleSeconds(timing.compute));
  writer.Double(TimingNumber::kSendSeconds, absl::ToDoubleSeconds(timing.send));
  writer.Varint(TimingNumber::kBatchRequests, timing.batch_requests);
  writer.Varint(TimingNumber::kTilesComputed, timing.stats.tiles_computed);
  writer.Varint(TimingNumber::kTilesSkipped, timing.stats.tiles_skipped);
  writer.Double(TimingNumber::kUploadSeconds, absl::ToDoubleSeconds(timing.stats.upload));
  writer.Double(TimingNumber::kKernelSeconds, absl::ToDoubleSeconds(timing.stats.kernel));
  writer.Double(TimingNumber::kDownloadSeconds, absl::ToDoubleSeconds(timing.stats.download));
  const std::string bytes = writer.Take();
  message->LengthDelimited(ResponseNumber::kTiming, bytes.size());
  message->Bytes(bytes.data(), bytes.size());
}

}  // namespace

absl::StatusOr<ParsedAttend> ParseAttendRequest(Direction direction, grpc::ByteBuffer* message,
                                                const AttendLimits& limits,
                                                const RegionRegistry* regions) {
  std::vector<grpc::Slice> slices;
  // References the slices; an empty message has none.
  if (message->Length() > 0 && !message->Dump(&slices).ok()) {
    return absl::InternalError("the message's bytes cannot be had from the transport");
  }
  message->Clear();
  absl::StatusOr<AttendFields> fields = ReadAttendRequest(direction, slices);
  if (!fields.ok()) return fields.status();
  return ParseAttendFields(*std::move(fields), std::move(slices), limits, regions);
}

absl::StatusOr<ParsedAttend> ParseAttendFields(AttendFields fields, std::vector<grpc::Slice> slices,
                                               const AttendLimits& limits,
                                               const RegionRegistry* regions) {
  ParsedAttend parsed = {.slices = std::move(slices), .fields = std::move(fields)};
  absl::StatusOr<ValidatedAttend> valid = ValidateAttend(parsed.fields, limits);
  if (!valid.ok()) return valid.status();
  parsed.valid = *std::move(valid);
  absl::StatusOr<RegionBinding> binding = BindRegions(parsed.valid.tensors, regions);
  if (!binding.ok()) return binding.status();
  parsed.regions = *std::move(binding);

  parsed.slopes.resize(static_cast<size_t>(parsed.valid.num_slopes));
  const wire::GatherItem slopes = {.from = parsed.fields.slopes.data, .to = parsed.slopes.data()};
  wire::Gather(parsed.slices, {&slopes, 1}, nullptr);
  const absl::Status finite = CheckSlopes(parsed.slopes);
  if (!finite.ok()) return finite;
  return parsed;
}

absl::StatusOr<DecodedAttend> StageAttendRequest(ParsedAttend parsed, HostAllocator& allocator,
                                                 wire::CopyPool* copy_pool) {
  const std::vector<InputTensor> inputs = parsed.valid.tensors.inputs;
  const std::vector<grpc::Slice> slices = std::move(parsed.slices);
  absl::StatusOr<ReservedAttend> reserved = ReserveAttendRequest(std::move(parsed), allocator);
  if (!reserved.ok()) return reserved.status();
  std::vector<wire::GatherItem> items;
  for (const wire::IncomingTensor& incoming : reserved->inputs) {
    for (const InputTensor& input : inputs) {
      if (incoming.number != input.stream_number) continue;
      items.push_back({.from = input.data, .to = incoming.to});
    }
  }
  wire::Gather(slices, items, copy_pool);
  return std::move(reserved->decoded);
}

absl::StatusOr<ReservedAttend> ReserveAttendRequest(ParsedAttend parsed, HostAllocator& allocator,
                                                    std::shared_ptr<void> keeps,
                                                    StartUpload start_upload) {
  ReservedAttend reserved;
  AttentionProblem& problem = reserved.decoded.problem;
  problem = parsed.valid.problem;
  parsed.slices.clear();

  AttendTensors& tensors = parsed.valid.tensors;
  RegionBinding& regions = parsed.regions;
  problem.on_device = regions.on_device;
  problem.device = regions.device;
  // What is in no region gets a place in a block.
  struct InBlock {
    size_t index;  // of the tensor
    size_t offset;
  };
  BlockLayout input_layout;
  std::vector<InBlock> inputs;
  for (size_t n = 0; n < tensors.inputs.size(); ++n) {
    const InputTensor& input = tensors.inputs[n];
    PointAt(input.tensor, regions.inputs[n], &problem);
    if (regions.inputs[n] != nullptr) continue;
    inputs.push_back({.index = n, .offset = input_layout.Add(static_cast<size_t>(input.bytes))});
  }
  BlockLayout output_layout;
  std::vector<InBlock> outputs;
  for (size_t n = 0; n < tensors.outputs.size(); ++n) {
    const OutputTensor& output = tensors.outputs[n];
    PointAt(output.tensor, regions.outputs[n], &problem);
    if (regions.outputs[n] != nullptr) continue;
    outputs.push_back({.index = n, .offset = output_layout.Add(static_cast<size_t>(output.bytes))});
  }

  if (input_layout.size() > allocator.max_total_bytes() ||
      output_layout.size() > allocator.max_total_bytes() - input_layout.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the request's tensors take ", input_layout.size() + output_layout.size(),
        " bytes of the server's host memory; accepted: at most ", allocator.max_total_bytes()));
  }
  // Where everything lies in regions, host memory need not have room.
  absl::StatusOr<HostBlock> input_block =
      inputs.empty() ? HostBlock() : allocator.Allocate(input_layout.size());
  if (!input_block.ok()) return input_block.status();
  absl::StatusOr<HostBlock> output_block =
      outputs.empty() ? HostBlock() : allocator.Allocate(output_layout.size());
  if (!output_block.ok()) return output_block.status();

  for (const auto& [index, offset] : inputs) {
    const InputTensor& input = tensors.inputs[index];
    char* const to = input_block->data() + offset;
    PointAt(input.tensor, to, &problem);
    reserved.inputs.push_back({.number = input.stream_number,
                               .name = input.name,
                               .to = to,
                               .bytes = static_cast<uint64_t>(input.bytes)});
  }
  for (const auto& [index, offset] : outputs) {
    PointAt(tensors.outputs[index].tensor, output_block->data() + offset, &problem);
  }
  auto storage = std::make_unique<AttendStorage>();
  storage->keeps = std::move(keeps);
  storage->regions = std::move(regions.regions);
  storage->outputs = std::move(tensors.outputs);
  storage->input_block = *std::move(input_block);
  storage->upload = start_upload(storage->input_block);
  reserved.upload = storage->upload.get();
  storage->output_block = *std::move(output_block);
  storage->sequences = std::move(parsed.valid.sequences);
  storage->slopes = std::move(parsed.slopes);
  problem.sequences = storage->sequences;
  if (problem.bias_kind == BiasKind::kAlibi) problem.alibi.slopes = storage->slopes.data();
  reserved.decoded.bytes = static_cast<int64_t>(
      regions.bytes + storage->input_block.size() + storage->output_block.size() +
      storage->slopes.size() * sizeof(float) + storage->sequences.size() * sizeof(Sequence));
  reserved.decoded.storage = std::move(storage);
  return reserved;
}

grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing) {
  // The inputs need not wait for the transport, nor what is written in regions.
  auto& attend = static_cast<AttendStorage&>(*storage);
  attend.ReleaseInputs();
  const std::shared_ptr<ProblemStorage> shared = std::move(storage);

  wire::MessageWriter writer;
  WriteTiming(timing, &writer);
  std::vector<grpc::Slice> slices;
  for (const OutputTensor& output : attend.outputs) {
    const int field = output.response_number;
    if (output.place.has_value()) {
      writer.TensorInRegion(field, output.dtype, output.shape, *output.place);
      continue;
    }
    const auto bytes = static_cast<uint64_t>(output.bytes);
    writer.TensorHeader(field, output.dtype, output.shape, bytes);
    if (bytes == 0) continue;
    slices.emplace_back(writer.Take());
    slices.push_back(SliceOver(OutputOf(problem, output.tensor), bytes, shared));
  }
  if (writer.size() > 0) slices.emplace_back(writer.Take());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

AttendResponseStream::AttendResponseStream(const AttentionProblem& problem,
                                           std::unique_ptr<ProblemStorage> storage,
                                           const ResponseTiming& timing, int64_t chunk_bytes)
    : storage_(std::move(storage)) {
  auto& attend = static_cast<AttendStorage&>(*storage_);
  attend.ReleaseInputs();

  wire::MessageWriter header;
  WriteTiming(timing, &header);
  std::vector<wire::OutgoingTensor> tensors;
  for (const OutputTensor& output : attend.outputs) {
    header.TensorHeader(output.response_number, output.dtype, output.shape, 0);
    tensors.push_back({.number = output.stream_number,
                       .data = static_cast<const char*>(OutputOf(problem, output.tensor)),
                       .bytes = static_cast<uint64_t>(output.bytes)});
  }
  cutter_ = wire::ChunkCutter(std::move(tensors), chunk_bytes);

  wire::MessageWriter message;
  message.LengthDelimited(StreamNumber::kHeader, header.size());
  const grpc::Slice slices[] = {grpc::Slice(message.Take()), grpc::Slice(header.Take())};
  header_.emplace(slices, 2);
}

std::optional<grpc::ByteBuffer> AttendResponseStream::Next() {
  if (header_.has_value()) return std::exchange(header_, std::nullopt);
  const std::optional<wire::ChunkCutter::Piece> piece = cutter_.Next();
  if (!piece.has_value()) return std::nullopt;
  const grpc::Slice slices[] = {
      grpc::Slice(wire::EncodeChunkHead(piece->tensor, piece->offset, piece->bytes)),
      // The transport only reads; the interface has no const.
      SliceOver(const_cast<char*>(piece->data), piece->bytes, storage_)};
  return grpc::ByteBuffer(slices, 2);
}

}  // namespace flashbias::server
