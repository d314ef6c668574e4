// grpc.health.v1 as this server answers it: for the whole server ("") and for AttentionService.
//
// Thread-safety: SetServing from any thread. The gRPC server must outlive it.
#ifndef FLASHBIAS_SERVER_HEALTH_H_
#define FLASHBIAS_SERVER_HEALTH_H_

#include <grpcpp/grpcpp.h>

namespace flashbias::server {

class Health {
 public:
  // Makes servers that are built afterwards carry the health service.
  static void EnableForNewServers();

  explicit Health(grpc::Server* server) : server_(server) {}

  void SetServing(bool serving);

 private:
  grpc::Server* const server_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_HEALTH_H_
