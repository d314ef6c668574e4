#include "tests/support/npz.h"

#include <cctype>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"

namespace flashbias::support {
namespace {

absl::Status Bad(std::string_view what, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(what), ": ", std::string(why)));  // absl::string_view may differ
}

template <typename T>
T Load(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

// The text after "'key':" in the header's dictionary, blanks left out; empty when there is none.
std::string_view HeaderValue(std::string_view header, std::string_view key) {
  const size_t at = header.find(absl::StrCat("'", std::string(key), "'"));
  if (at == std::string_view::npos) return {};
  header.remove_prefix(at + key.size() + 2);
  while (!header.empty() && (header.front() == ':' || header.front() == ' ')) {
    header.remove_prefix(1);
  }
  return header;
}

bool ParseShape(std::string_view text, std::vector<int64_t>* shape) {
  if (text.empty() || text.front() != '(') return false;
  text.remove_prefix(1);
  int64_t number = -1;
  for (const char c : text) {
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
      number = (number < 0 ? 0 : number) * 10 + (c - '0');
      if (number > (int64_t{1} << 40)) return false;
    } else if (c == ',' || c == ')') {
      if (number >= 0) shape->push_back(number);
      number = -1;
      if (c == ')') return true;
    } else if (c != ' ') {
      return false;
    }
  }
  return false;
}

template <typename T>
std::vector<double> Widen(std::string_view data) {
  std::vector<double> values(data.size() / sizeof(T));
  for (size_t n = 0; n < values.size(); ++n) {
    values[n] = static_cast<double>(Load<T>(data, n * sizeof(T)));
  }
  return values;
}

}  // namespace

absl::StatusOr<NpyArray> ParseNpy(std::string_view bytes, std::string_view what) {
  if (bytes.size() < 10 || bytes.substr(0, 6) != std::string_view("\x93NUMPY", 6)) {
    return Bad(what, "no .npy magic");
  }
  const bool version1 = bytes[6] == 1;
  const size_t header_at = version1 ? 10 : 12;
  if (bytes.size() < header_at) return Bad(what, "the header is cut off");
  const size_t header_size = version1 ? Load<uint16_t>(bytes, 8) : Load<uint32_t>(bytes, 8);
  if (header_size > bytes.size() - header_at) return Bad(what, "the header is cut off");
  const std::string_view header = bytes.substr(header_at, header_size);
  const std::string_view data = bytes.substr(header_at + header_size);

  NpyArray array;
  const std::string_view descr = HeaderValue(header, "descr");
  if (descr.size() < 5 || descr.front() != '\'') return Bad(what, "no descr in the header");
  array.descr = std::string(descr.substr(1, 3));
  if (HeaderValue(header, "fortran_order").substr(0, 5) != "False") {
    return Bad(what, "not in C order");
  }
  if (!ParseShape(HeaderValue(header, "shape"), &array.shape)) {
    return Bad(what, "no shape in the header");
  }
  size_t count = 1;
  for (const int64_t extent : array.shape) {
    if (extent != 0 && count > data.size() / static_cast<size_t>(extent)) {
      return Bad(what, "fewer elements than the shape says");
    }
    count *= static_cast<size_t>(extent);
  }
  const size_t element = static_cast<size_t>(array.descr[2] - '0');
  if (element != 2 && element != 4 && element != 8) return Bad(what, "an unknown type");
  if (data.size() != count * element) return Bad(what, "not as many bytes as the shape says");

  if (array.descr == "<f8") {
    array.values = Widen<double>(data);
  } else if (array.descr == "<f4") {
    array.values = Widen<float>(data);
  } else if (array.descr == "<i8") {
    array.values = Widen<int64_t>(data);
  } else if (array.descr == "<i4") {
    array.values = Widen<int32_t>(data);
  } else if (array.descr == "<f2") {
    array.values.resize(count);
    for (size_t n = 0; n < count; ++n) {
      array.values[n] = Float16ToFloat(Load<uint16_t>(data, n * 2));
    }
  } else {
    return Bad(what, absl::StrCat("type '", array.descr, "' is not read here"));
  }
  return array;
}

absl::StatusOr<std::map<std::string, NpyArray>> ParseNpz(std::string_view bytes,
                                                         std::string_view what) {
  // End of central directory, central directory entries, local headers: APPNOTE.TXT 4.3.
  constexpr std::string_view kEnd("PK\x05\x06", 4);
  constexpr std::string_view kEntry("PK\x01\x02", 4);
  constexpr std::string_view kLocal("PK\x03\x04", 4);
  const size_t end = bytes.rfind(kEnd);
  if (end == std::string_view::npos || bytes.size() - end < 22) {
    return Bad(what, "no zip directory");
  }
  const int entries = Load<uint16_t>(bytes, end + 10);
  size_t at = Load<uint32_t>(bytes, end + 16);
  std::map<std::string, NpyArray> arrays;
  for (int n = 0; n < entries; ++n) {
    if (at > bytes.size() || bytes.size() - at < 46 || bytes.substr(at, 4) != kEntry) {
      return Bad(what, "the zip directory is damaged");
    }
    const size_t compression = Load<uint16_t>(bytes, at + 10);
    const size_t size = Load<uint32_t>(bytes, at + 20);
    const size_t name_size = Load<uint16_t>(bytes, at + 28);
    const size_t extra_size = Load<uint16_t>(bytes, at + 30);
    const size_t comment_size = Load<uint16_t>(bytes, at + 32);
    const size_t local = Load<uint32_t>(bytes, at + 42);
    if (bytes.size() - at - 46 < name_size) return Bad(what, "the zip directory is damaged");
    std::string name(bytes.substr(at + 46, name_size));
    const std::string member = absl::StrCat(std::string(what), ":", name);
    if (compression != 0) return Bad(member, "compressed members are not read here");
    if (local > bytes.size() || bytes.size() - local < 30 || bytes.substr(local, 4) != kLocal) {
      return Bad(member, "no local header");
    }
    const size_t data = local + 30 + Load<uint16_t>(bytes, local + 26) +
                        static_cast<size_t>(Load<uint16_t>(bytes, local + 28));
    if (data > bytes.size() || bytes.size() - data < size) return Bad(member, "cut off");
    absl::StatusOr<NpyArray> array = ParseNpy(bytes.substr(data, size), member);
    if (!array.ok()) return array.status();
    if (name.size() > 4 && name.substr(name.size() - 4) == ".npy") name.resize(name.size() - 4);
    arrays.emplace(std::move(name), *std::move(array));
    at += 46 + name_size + extra_size + comment_size;
  }
  return arrays;
}

std::string EncodeNpy(std::string_view descr, const std::vector<int64_t>& shape,
                      std::string_view data) {
  std::string header =
      absl::StrCat("{'descr': '", std::string(descr), "', 'fortran_order': False, 'shape': (");
  for (const int64_t extent : shape) absl::StrAppend(&header, extent, ",");
  absl::StrAppend(&header, "), }");
  // Magic, version, length, header and newline together are a multiple of 64.
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  return absl::StrCat(file, header, std::string(data));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::Status WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

absl::StatusOr<NpyArray> ReadNpy(const std::string& path) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (!bytes.ok()) return bytes.status();
  return ParseNpy(*bytes, path);
}

absl::StatusOr<std::map<std::string, NpyArray>> ReadNpz(const std::string& path) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (!bytes.ok()) return bytes.status();
  return ParseNpz(*bytes, path);
}

}  // namespace flashbias::support
