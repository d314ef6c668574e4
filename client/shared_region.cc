#include "client/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/region_connection.h"
#include "client/region_map.h"
#include "wire/unique_fd.h"

namespace flashbias::client {
namespace {

std::string ErrorText(int error) {
  return std::error_code(error, std::generic_category()).message();
}

// What came must be what the protocol promises, or touching it could end the process.
absl::Status CheckMemory(const wire::UniqueFd& fd, uint64_t bytes) {
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  struct stat file = {};
  const bool good = fd.valid() && fstat(fd.get(), &file) == 0 &&
                    static_cast<uint64_t>(file.st_size) == bytes &&
                    (fcntl(fd.get(), F_GET_SEALS) & kSeals) == kSeals;
  return good ? absl::OkStatus()
              : absl::InternalError(
                    absl::StrCat("the server's region is no sealed memory of ", bytes, " bytes"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedRegion::Create(const std::string& unix_path,
                                                                   size_t bytes,
                                                                   absl::Duration timeout,
                                                                   std::shared_ptr<RegionMap> map) {
  absl::StatusOr<GrantedRegion> granted = AskForRegion(unix_path, {.bytes = bytes}, timeout);
  if (!granted.ok()) return granted.status();
  absl::Status good = CheckMemory(granted->memory, bytes);
  if (!good.ok()) return good;
  // The pages exist; populated, they cost no fault at first touch.
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                          granted->memory.get(), 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("mapping a region of ", bytes, " bytes: ", ErrorText(errno)));
  }
  return std::unique_ptr<SharedRegion>(new SharedRegion(
      granted->connection.Release(), static_cast<char*>(data), bytes, granted->id, std::move(map)));
}

SharedRegion::SharedRegion(int connection, char* data, size_t size, uint64_t id,
                           std::shared_ptr<RegionMap> map)
    : connection_(connection), data_(data), size_(size), id_(id), map_(std::move(map)) {
  map_->Add(data_, size_, id_);
}

SharedRegion::~SharedRegion() {
  map_->Remove(data_);
  munmap(data_, size_);
  close(connection_);
}

}  // namespace flashbias::client
