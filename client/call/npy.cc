#include "client/call/npy.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/call/npy_header_parser.h"

namespace flashbias::client {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kMaxFortranDims = 3;
constexpr const char* kServedTypes = "'<f2', '<f4', '<f8', and '<u2' for raw bfloat16";

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

template <typename... Args>
absl::Status Bad(const std::string& name, const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", args...));
}

absl::Status SystemError(const std::string& path, const char* action) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", action));
}

std::string FormatShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), shape.size() == 1 ? ",)" : ")");
}

std::optional<NpyType> TypeOf(const std::string& descr) {
  for (const NpyType type :
       {NpyType::kFloat16, NpyType::kFloat32, NpyType::kFloat64, NpyType::kUint16}) {
    if (descr == NpyDescr(type)) return type;
  }
  return std::nullopt;
}

// Bytes of the elements; nullopt: more than an int64 holds.
std::optional<int64_t> ByteCount(NpyType type, const std::vector<int64_t>& shape) {
  // The product of the other extents is checked even where one is 0: it is what numpy refuses.
  int64_t bytes = NpySizeOf(type);
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent == 0) {
      empty = true;
      continue;
    }
    if (bytes > std::numeric_limits<int64_t>::max() / extent) return std::nullopt;
    bytes *= extent;
  }
  return empty ? 0 : bytes;
}

absl::StatusOr<NpyType> CheckFields(const std::string& name, const NpyHeaderFields& fields) {
  if (fields.structured) {
    return Bad(name, "its elements are structured; accepted: ", kServedTypes);
  }
  const std::optional<NpyType> type = TypeOf(fields.descr);
  if (!type.has_value()) {
    const char* kind = absl::StartsWith(fields.descr, ">")    ? " (big-endian)"
                       : absl::StrContains(fields.descr, "O") ? " (Python objects)"
                                                              : "";
    return Bad(name, "its element type is '", fields.descr, "'", kind,
               "; accepted: ", kServedTypes);
  }
  if (fields.fortran_order && fields.shape.size() > kMaxFortranDims) {
    return Bad(name, "it is in Fortran order with ", fields.shape.size(),
               " dimensions; accepted: up to ", kMaxFortranDims,
               ", or C order (numpy.ascontiguousarray)");
  }
  return *type;
}

// Elements whose first index runs fastest, put so that the last one does. At most 3 extents.
std::string ToRowMajor(const std::string& data, const std::vector<int64_t>& shape,
                       int64_t element_size) {
  std::vector<int64_t> extents = shape;
  extents.resize(kMaxFortranDims, 1);
  std::string result(data.size(), '\0');
  char* to = result.data();
  for (int64_t i = 0; i < extents[0]; ++i) {
    for (int64_t j = 0; j < extents[1]; ++j) {
      for (int64_t k = 0; k < extents[2]; ++k) {
        const int64_t from = i + extents[0] * (j + extents[1] * k);
        std::memcpy(to, data.data() + from * element_size, static_cast<size_t>(element_size));
        to += element_size;
      }
    }
  }
  return result;
}

uint32_t LittleEndian(absl::string_view bytes) {
  uint32_t value = 0;
  for (size_t n = 0; n < bytes.size(); ++n) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[n])) << (8 * n);
  }
  return value;
}

}  // namespace

const char* NpyDescr(NpyType type) {
  switch (type) {
    case NpyType::kFloat16:
      return "<f2";
    case NpyType::kFloat32:
      return "<f4";
    case NpyType::kFloat64:
      return "<f8";
    case NpyType::kUint16:
      return "<u2";
  }
  return "";
}

int64_t NpySizeOf(NpyType type) { return NpyDescr(type)[2] - '0'; }

absl::StatusOr<NpyArray> ParseNpy(const std::string& name, std::string bytes) {
  const absl::string_view all = bytes;
  if (!absl::StartsWith(all, kMagic)) {
    return Bad(name, "it is not a .npy file (it does not begin with \\x93NUMPY)");
  }
  if (all.size() < 8) return Bad(name, "it is truncated: ", all.size(), " bytes");
  const int major = static_cast<unsigned char>(all[6]);
  const int minor = static_cast<unsigned char>(all[7]);
  if (major < 1 || major > 3 || minor != 0) {
    return Bad(name, "its format version is ", major, ".", minor, "; accepted: 1.0, 2.0, 3.0");
  }
  const size_t length_bytes = major == 1 ? 2 : 4;
  const size_t header_begin = 8 + length_bytes;
  if (all.size() < header_begin) return Bad(name, "it is truncated: ", all.size(), " bytes");
  const size_t header_size = LittleEndian(all.substr(8, length_bytes));
  if (all.size() - header_begin < header_size) {
    return Bad(name, "it is truncated: its header has ", header_size, " bytes and the file ",
               all.size());
  }
  absl::StatusOr<NpyHeaderFields> fields = ParseNpyHeader(all.substr(header_begin, header_size));
  if (!fields.ok()) {
    return Bad(name, absl::string_view(fields.status().message()));
  }
  const absl::StatusOr<NpyType> type = CheckFields(name, *fields);
  if (!type.ok()) return type.status();

  const std::optional<int64_t> expected = ByteCount(*type, fields->shape);
  if (!expected.has_value()) {
    return Bad(name, "its shape ", FormatShape(fields->shape), " is beyond 2^63 bytes");
  }
  const auto actual = static_cast<int64_t>(all.size() - header_begin - header_size);
  if (actual < *expected) {
    return Bad(name, "it is truncated: shape ", FormatShape(fields->shape), " of ", NpyDescr(*type),
               " takes ", *expected, " bytes and ", actual, " are there");
  }
  if (actual > *expected) {
    return Bad(name, "it has ", actual - *expected, " bytes after the array; accepted: one array");
  }
  bytes.erase(0, header_begin + header_size);
  if (fields->fortran_order) bytes = ToRowMajor(bytes, fields->shape, NpySizeOf(*type));
  return NpyArray{.type = *type, .shape = std::move(fields->shape), .data = std::move(bytes)};
}

absl::StatusOr<NpyArray> ReadNpy(const std::string& path) {
  errno = 0;
  const File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return SystemError(path, "cannot open");
  std::string bytes;
  constexpr size_t kChunk = size_t{1} << 20;
  while (true) {
    const size_t before = bytes.size();
    bytes.resize(before + kChunk);
    const size_t got = std::fread(&bytes[before], 1, kChunk, file.get());
    bytes.resize(before + got);
    if (got < kChunk) break;
  }
  if (std::ferror(file.get()) != 0) return SystemError(path, "cannot read");
  return ParseNpy(path, std::move(bytes));
}

std::string NpyHeader(NpyType type, const std::vector<int64_t>& shape) {
  std::string dict =
      absl::StrCat("{'descr': '", NpyDescr(type),
                   "', 'fortran_order': False, 'shape': ", FormatShape(shape), ", }");
  // Magic, version and length take 10 bytes, the closing newline 1.
  dict.append(63 - (10 + dict.size()) % 64, ' ');
  dict.push_back('\n');
  std::string header(kMagic);
  header.push_back('\x01');
  header.push_back('\0');
  header.push_back(static_cast<char>(dict.size() & 0xff));
  header.push_back(static_cast<char>(dict.size() >> 8));
  return header + dict;
}

absl::Status WriteNpy(OutputFile* file, NpyType type, const std::vector<int64_t>& shape,
                      absl::string_view data) {
  return file->Write({NpyHeader(type, shape), data});
}

absl::Status WriteNpy(const std::string& path, NpyType type, const std::vector<int64_t>& shape,
                      absl::string_view data) {
  absl::StatusOr<OutputFile> file = OutputFile::Open(path);
  if (!file.ok()) return file.status();
  return WriteNpy(&*file, type, shape, data);
}

}  // namespace flashbias::client
