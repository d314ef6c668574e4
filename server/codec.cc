#include "server/codec.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "server/attend_reader.h"
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
    inputs = HostBlock();
    regions.clear();
  }

  std::shared_ptr<void> keeps;          // first: it goes when the blocks have gone
  HostBlock inputs;                     // q, k, v and the factors
  std::unique_ptr<UploadAhead> upload;  // of `inputs`, or null
  HostBlock outputs;  // o, then lse; not initialised: the backend writes every element
  std::vector<std::shared_ptr<const Region>> regions;
  std::optional<wire::RegionPlace> o_place;    // null: in `outputs`
  std::optional<wire::RegionPlace> lse_place;  // null: in `outputs`
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

std::string EncodeTiming(const ResponseTiming& timing) {
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
  return writer.Take();
}

}  // namespace

absl::StatusOr<ParsedAttend> ParseAttendRequest(grpc::ByteBuffer* message,
                                                const AttendLimits& limits,
                                                const RegionRegistry* regions) {
  std::vector<grpc::Slice> slices;
  // References the slices; an empty message has none.
  if (message->Length() > 0 && !message->Dump(&slices).ok()) {
    return absl::InternalError("the message's bytes cannot be had from the transport");
  }
  message->Clear();
  absl::StatusOr<AttendFields> fields = ReadAttendRequest(slices);
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
  absl::StatusOr<RegionBinding> binding = BindRegions(parsed.fields, parsed.valid, regions);
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
  const AttendFields& fields = parsed.fields;
  const std::pair<int, wire::ByteRange> from[] = {{wire::kStreamQ, fields.q.data},
                                                  {wire::kStreamK, fields.k.data},
                                                  {wire::kStreamV, fields.v.data},
                                                  {wire::kStreamPhiQ, fields.phi_q.data},
                                                  {wire::kStreamPhiK, fields.phi_k.data}};
  const std::vector<grpc::Slice> slices = std::move(parsed.slices);
  absl::StatusOr<ReservedAttend> reserved = ReserveAttendRequest(std::move(parsed), allocator);
  if (!reserved.ok()) return reserved.status();
  std::vector<wire::GatherItem> items;
  for (const wire::IncomingTensor& input : reserved->inputs) {
    for (const auto& [number, data] : from) {
      if (number == input.number) items.push_back({.from = data, .to = input.to});
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

  struct Input {
    int number;
    const char* name;
    int64_t bytes;
    const void** pointer;
    size_t offset = 0;
  };
  const ValidatedAttend& valid = parsed.valid;
  RegionBinding& regions = parsed.regions;
  std::vector<Input> inputs;
  const auto add_input = [&](int number, const char* name, int64_t bytes, const char* in_region,
                             const void** pointer) {
    *pointer = in_region;
    if (in_region == nullptr) inputs.push_back({number, name, bytes, pointer});
  };
  problem.on_device = regions.on_device;
  problem.device = regions.device;
  add_input(wire::kStreamQ, "q", valid.q_bytes, regions.q, &problem.q);
  add_input(wire::kStreamK, "k", valid.kv_bytes, regions.k, &problem.k);
  add_input(wire::kStreamV, "v", valid.kv_bytes, regions.v, &problem.v);
  if (problem.bias_kind == BiasKind::kLowRank) {
    add_input(wire::kStreamPhiQ, "low_rank.phi_q", valid.phi_q_bytes, regions.phi_q,
              &problem.low_rank.phi_q);
    add_input(wire::kStreamPhiK, "low_rank.phi_k", valid.phi_k_bytes, regions.phi_k,
              &problem.low_rank.phi_k);
  }
  BlockLayout input_layout;
  for (Input& input : inputs) input.offset = input_layout.Add(static_cast<size_t>(input.bytes));
  const bool lse_in_block = parsed.fields.want_lse && regions.lse == nullptr;
  BlockLayout output_layout;
  const size_t o_offset =
      regions.o == nullptr ? output_layout.Add(static_cast<size_t>(valid.o_bytes)) : 0;
  const size_t lse_offset =
      lse_in_block ? output_layout.Add(static_cast<size_t>(valid.lse_bytes)) : 0;

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
  absl::StatusOr<HostBlock> output_block = regions.o != nullptr && !lse_in_block
                                               ? HostBlock()
                                               : allocator.Allocate(output_layout.size());
  if (!output_block.ok()) return output_block.status();

  for (const Input& input : inputs) {
    char* const to = input_block->data() + input.offset;
    *input.pointer = to;
    reserved.inputs.push_back({.number = input.number,
                               .name = input.name,
                               .to = to,
                               .bytes = static_cast<uint64_t>(input.bytes)});
  }
  problem.o = regions.o != nullptr ? regions.o : output_block->data() + o_offset;
  if (parsed.fields.want_lse) {
    problem.lse = reinterpret_cast<float*>(
        regions.lse != nullptr ? regions.lse : output_block->data() + lse_offset);
  }
  auto storage = std::make_unique<AttendStorage>();
  storage->keeps = std::move(keeps);
  storage->regions = std::move(regions.regions);
  storage->o_place = parsed.fields.o_place;
  storage->lse_place = parsed.fields.lse_place;
  storage->inputs = *std::move(input_block);
  storage->upload = start_upload(storage->inputs);
  reserved.upload = storage->upload.get();
  storage->outputs = *std::move(output_block);
  storage->sequences = std::move(parsed.valid.sequences);
  storage->slopes = std::move(parsed.slopes);
  problem.sequences = storage->sequences;
  if (problem.bias_kind == BiasKind::kAlibi) problem.alibi.slopes = storage->slopes.data();
  reserved.decoded.bytes = static_cast<int64_t>(
      regions.bytes + storage->inputs.size() + storage->outputs.size() +
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
  const std::optional<wire::RegionPlace> o_place = attend.o_place;
  const std::optional<wire::RegionPlace> lse_place = attend.lse_place;
  const std::shared_ptr<ProblemStorage> shared = std::move(storage);

  wire::MessageWriter writer;
  const std::string timing_bytes = EncodeTiming(timing);
  writer.LengthDelimited(ResponseNumber::kTiming, timing_bytes.size());
  writer.Bytes(timing_bytes.data(), timing_bytes.size());

  std::vector<grpc::Slice> slices;
  const auto append = [&](int field, DType dtype, absl::Span<const int64_t> shape, void* data,
                          int64_t elements, const std::optional<wire::RegionPlace>& place) {
    if (place.has_value()) return writer.TensorInRegion(field, dtype, shape, *place);
    const uint64_t bytes = static_cast<uint64_t>(elements) * SizeOf(dtype);
    writer.TensorHeader(field, dtype, shape, bytes);
    slices.emplace_back(writer.Take());
    if (bytes > 0) slices.push_back(SliceOver(data, bytes, shared));
  };
  const int64_t rows = problem.total_q * problem.num_q_heads;
  if (problem.lse != nullptr) {
    append(ResponseNumber::kLse, DType::kFloat32, {problem.total_q, problem.num_q_heads},
           problem.lse, rows, lse_place);
  }
  append(ResponseNumber::kO, problem.dtype,
         {problem.total_q, problem.num_q_heads, problem.head_dim}, problem.o,
         rows * problem.head_dim, o_place);
  if (writer.size() > 0) slices.emplace_back(writer.Take());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

AttendResponseStream::AttendResponseStream(const AttentionProblem& problem,
                                           std::unique_ptr<ProblemStorage> storage,
                                           const ResponseTiming& timing, int64_t chunk_bytes)
    : storage_(std::move(storage)) {
  static_cast<AttendStorage*>(storage_.get())->ReleaseInputs();
  const auto rows = static_cast<uint64_t>(problem.total_q * problem.num_q_heads);

  wire::MessageWriter header;
  const std::string timing_bytes = EncodeTiming(timing);
  header.LengthDelimited(ResponseNumber::kTiming, timing_bytes.size());
  header.Bytes(timing_bytes.data(), timing_bytes.size());
  std::vector<wire::OutgoingTensor> tensors;
  if (problem.lse != nullptr) {
    header.TensorHeader(ResponseNumber::kLse, DType::kFloat32,
                        {problem.total_q, problem.num_q_heads}, 0);
    tensors.push_back({.number = wire::kStreamLse,
                       .data = reinterpret_cast<const char*>(problem.lse),
                       .bytes = rows * sizeof(float)});
  }
  header.TensorHeader(ResponseNumber::kO, problem.dtype,
                      {problem.total_q, problem.num_q_heads, problem.head_dim}, 0);
  tensors.push_back(
      {.number = wire::kStreamO,
       .data = static_cast<const char*>(problem.o),
       .bytes = rows * static_cast<uint64_t>(problem.head_dim) * SizeOf(problem.dtype)});
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
