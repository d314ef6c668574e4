#include "server/health.h"

#include <grpcpp/health_check_service_interface.h>

#include "flashbias/v1/attention.grpc.pb.h"

namespace flashbias::server {

void Health::EnableForNewServers() { grpc::EnableDefaultHealthCheckService(true); }

void Health::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health = server_->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus(serving);
  health->SetServingStatus(v1::AttentionService::service_full_name(), serving);
}

}  // namespace flashbias::server
