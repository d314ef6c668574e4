// Certificates for one test, made in memory and valid for a century.
#ifndef FLASHBIAS_TESTS_CLIENT_TEST_CERTIFICATES_H_
#define FLASHBIAS_TESTS_CLIENT_TEST_CERTIFICATES_H_

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

#include "gtest/gtest.h"

namespace flashbias::client {

// As PEM.
struct TestIdentity {
  std::string certificate;
  std::string key;
};

class TestAuthority {
 public:
  TestAuthority() { certificate_ = Make("test authority", "", nullptr, key_.get()); }

  // PEM.
  std::string certificate() const { return ToPem(certificate_.get()); }

  // A certificate for `names`, as "DNS:localhost,IP:127.0.0.1".
  TestIdentity Issue(const std::string& names) const {
    const Key key(EVP_EC_gen("P-256"));
    return {.certificate = ToPem(Make("test", names, certificate_.get(), key.get()).get()),
            .key = ToPem(key.get(), nullptr)};
  }

  // PEM of a fresh private key; with a passphrase where one is given.
  static std::string MakeKey(const char* passphrase = nullptr) {
    return ToPem(Key(EVP_EC_gen("P-256")).get(), passphrase);
  }

 private:
  template <auto Free>
  struct FreedBy {
    template <typename T>
    void operator()(T* pointer) const {
      Free(pointer);
    }
  };
  using Key = std::unique_ptr<EVP_PKEY, FreedBy<EVP_PKEY_free>>;
  using Certificate = std::unique_ptr<X509, FreedBy<X509_free>>;
  using Bio = std::unique_ptr<BIO, FreedBy<BIO_free>>;

  // Of `key`, signed by the authority; `issuer` null: by itself, to sign others.
  Certificate Make(const char* name, const std::string& names, X509* issuer, EVP_PKEY* key) const {
    constexpr long kDay = 24 * 60 * 60;
    Certificate certificate(X509_new());
    X509* const x509 = certificate.get();
    X509_set_version(x509, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), issuer == nullptr ? 1 : 2);
    X509_gmtime_adj(X509_getm_notBefore(x509), -kDay);
    X509_gmtime_adj(X509_getm_notAfter(x509), 36500 * kDay);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
    X509_set_issuer_name(x509, X509_get_subject_name(issuer == nullptr ? x509 : issuer));
    X509_set_pubkey(x509, key);
    if (issuer == nullptr) Extend(x509, NID_basic_constraints, "critical,CA:TRUE");
    if (!names.empty()) Extend(x509, NID_subject_alt_name, names);
    EXPECT_GT(X509_sign(x509, key_.get(), EVP_sha256()), 0);
    return certificate;
  }

  static void Extend(X509* certificate, int nid, const std::string& value) {
    X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
    ASSERT_NE(extension, nullptr) << value;
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }

  static std::string Text(const Bio& bio) {
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return std::string(data, static_cast<size_t>(size));
  }
  static std::string ToPem(X509* certificate) {
    const Bio bio(BIO_new(BIO_s_mem()));
    EXPECT_EQ(PEM_write_bio_X509(bio.get(), certificate), 1);
    return Text(bio);
  }
  static std::string ToPem(EVP_PKEY* key, const char* passphrase) {
    const Bio bio(BIO_new(BIO_s_mem()));
    EXPECT_EQ(PEM_write_bio_PKCS8PrivateKey(
                  bio.get(), key, passphrase == nullptr ? nullptr : EVP_aes_256_cbc(), passphrase,
                  passphrase == nullptr ? 0 : static_cast<int>(std::string(passphrase).size()),
                  nullptr, nullptr),
              1);
    return Text(bio);
  }

  const Key key_{EVP_EC_gen("P-256")};
  Certificate certificate_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_TEST_CERTIFICATES_H_
