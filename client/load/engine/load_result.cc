#include "client/load/engine/load_result.h"

namespace flashbias::client {

void StageTotals::Add(const Timing& timing) {
  receive += timing.receive;
  queue += timing.queue;
  compute += timing.compute;
  send += timing.send;
  upload += timing.upload;
  kernel += timing.kernel;
  download += timing.download;
  ++calls;
  batch_requests += timing.batch_requests;
  tiles_computed += timing.tiles_computed;
  tiles_skipped += timing.tiles_skipped;
}

void StageTotals::Add(const StageTotals& other) {
  receive += other.receive;
  queue += other.queue;
  compute += other.compute;
  send += other.send;
  upload += other.upload;
  kernel += other.kernel;
  download += other.download;
  calls += other.calls;
  batch_requests += other.batch_requests;
  tiles_computed += other.tiles_computed;
  tiles_skipped += other.tiles_skipped;
}

}  // namespace flashbias::client
