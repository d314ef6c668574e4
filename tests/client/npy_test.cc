#include "client/call/npy.h"

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A file as numpy lays it out: `dict` is padded with spaces to the length that is given.
std::string File(int major, const std::string& dict, const std::string& data,
                 size_t header_size = 118) {
  std::string padded = dict;
  padded.resize(header_size - 1, ' ');
  padded.push_back('\n');
  std::string file = "\x93NUMPY";
  file.push_back(static_cast<char>(major));
  file.push_back('\0');
  for (int n = 0; n < (major == 1 ? 2 : 4); ++n) {
    file.push_back(static_cast<char>((padded.size() >> (8 * n)) & 0xff));
  }
  return file + padded + data;
}

std::string Dict(const std::string& descr, const std::string& shape,
                 const std::string& fortran = "False") {
  return absl::StrCat("{'descr': '", descr, "', 'fortran_order': ", fortran, ", 'shape': ", shape,
                      ", }");
}

// The error of a file that must not parse: one line that begins with the file's name.
std::string ErrorOf(const std::string& bytes) {
  const absl::StatusOr<NpyArray> array = ParseNpy("a.npy", bytes);
  EXPECT_EQ(array.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(array.status().message());
  EXPECT_THAT(message, StartsWith("a.npy: "));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
  return message;
}

TEST(NpyTest, ReadsTheBytesThatNumpyWrites) {
  // numpy.save of numpy.array([[1, 2, 3]], numpy.float32), version 1.0: 128 bytes, then 12.
  const std::string data("\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40", 12);
  const std::string file = File(1, Dict("<f4", "(1, 3)"), data);
  ASSERT_EQ(file.size(), 140u);
  const absl::StatusOr<NpyArray> array = ParseNpy("a.npy", file);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->type, NpyType::kFloat32);
  EXPECT_EQ(array->shape, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(array->data, data);
}

TEST(NpyTest, ReadsVersions2And3) {
  for (const int major : {2, 3}) {
    const std::string file = File(major, Dict("<f2", "(2,)"), "abcd", 116);
    ASSERT_EQ(file.size(), 132u);
    const absl::StatusOr<NpyArray> array = ParseNpy("a.npy", file);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->type, NpyType::kFloat16);
    EXPECT_EQ(array->data, "abcd");
  }
}

TEST(NpyTest, ReadsZeroDimensionsAndEmptyArraysAndOtherSpellings) {
  absl::StatusOr<NpyArray> array = ParseNpy("a.npy", File(1, Dict("<f8", "()"), "12345678"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_TRUE(array->shape.empty());
  EXPECT_EQ(array->data, "12345678");

  array = ParseNpy("a.npy", File(1, Dict("<u2", "(0, 4, 8)"), ""));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape, (std::vector<int64_t>{0, 4, 8}));

  // Other order, double quotes, no last comma, Python 2 integers.
  array =
      ParseNpy("a.npy", File(1, R"({"shape":(2L,),"fortran_order":False,"descr":"<f2"})", "abcd"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2}));
}

TEST(NpyTest, SaysWhichElementTypesAreServed) {
  EXPECT_THAT(ErrorOf(File(1, Dict(">f4", "(1,)"), "abcd")),
              AllOf(HasSubstr("'>f4'"), HasSubstr("big-endian"), HasSubstr("'<f4'")));
  EXPECT_THAT(ErrorOf(File(1, Dict("|O", "(1,)"), "abcdefgh")), HasSubstr("Python objects"));
  EXPECT_THAT(ErrorOf(File(1, Dict("<i8", "(1,)"), "abcdefgh")), HasSubstr("'<i8'"));
  EXPECT_THAT(ErrorOf(File(1, Dict("<c8", "(1,)"), "abcdefgh")), HasSubstr("'<c8'"));
  const std::string structured =
      "{'descr': [('x', '<f4'), ('y', '<f4', (2,))], 'fortran_order': False, 'shape': (1,), }";
  EXPECT_THAT(ErrorOf(File(1, structured, "abcdabcdabcd")), HasSubstr("structured"));
}

TEST(NpyTest, FortranOrderComesOutRowMajor) {
  // Row and column are the two characters of an element.
  absl::StatusOr<NpyArray> array =
      ParseNpy("a.npy", File(1, Dict("<f2", "(2, 3)", "True"), "a0b0a1b1a2b2"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(array->data, "a0a1a2b0b1b2");

  // The first index is upper or lower case, the second the letter, the third the digit.
  array = ParseNpy("a.npy", File(1, Dict("<u2", "(2, 3, 2)", "True"), "A0a0B0b0C0c0A1a1B1b1C1c1"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 3, 2}));
  EXPECT_EQ(array->data, "A0A1B0B1C0C1a0a1b0b1c0c1");

  array = ParseNpy("a.npy", File(1, Dict("<f2", "(3,)", "True"), "abcdef"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->data, "abcdef");
  array = ParseNpy("a.npy", File(1, Dict("<f2", "(0, 4)", "True"), ""));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->data, "");
  EXPECT_THAT(ErrorOf(File(1, Dict("<f2", "(1, 1, 1, 1)", "True"), "ab")),
              AllOf(HasSubstr("Fortran order with 4 dimensions"), HasSubstr("up to 3")));
}

TEST(NpyTest, RefusesTruncatedFilesAtEveryLength) {
  const std::string file = File(1, Dict("<f4", "(2,)"), "abcdefgh");
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(ParseNpy("a.npy", file.substr(0, size)).ok()) << size;
  }
  EXPECT_THAT(ErrorOf(file.substr(0, 130)), HasSubstr("takes 8 bytes and 2 are there"));
  EXPECT_THAT(ErrorOf(file.substr(0, 20)), HasSubstr("truncated"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("not a .npy file"));
  EXPECT_THAT(ErrorOf("PK\x03\x04 a zip, that is .npz"), HasSubstr("not a .npy file"));
}

TEST(NpyTest, RefusesBytesAfterTheArray) {
  EXPECT_THAT(ErrorOf(File(1, Dict("<f4", "(1,)"), "abcdX")), HasSubstr("1 bytes after"));
}

TEST(NpyTest, RefusesShapesThatOverflow) {
  EXPECT_THAT(ErrorOf(File(1, Dict("<f4", "(4294967296, 4294967296)"), "")),
              HasSubstr("beyond 2^63"));
  EXPECT_THAT(ErrorOf(File(1, Dict("<f4", "(99999999999999999999,)"), "")), HasSubstr("header"));
  EXPECT_THAT(ErrorOf(File(1, Dict("<f4", "(1000000000000,)"), "abcd")), HasSubstr("truncated"));
  EXPECT_THAT(ErrorOf(File(1, Dict("<f4", "(0, 4294967296, 4294967296)"), "")),
              HasSubstr("beyond 2^63"));
}

TEST(NpyTest, RefusesOtherVersionsAndBrokenHeaders) {
  EXPECT_THAT(ErrorOf(File(4, Dict("<f4", "(1,)"), "abcd")), HasSubstr("version is 4.0"));
  for (const char* dict :
       {"", "{", "{}", "[]", "{'descr': '<f4'}", "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 1, }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1, }",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } x",
        "{'descr': [('x', '<f4', 'fortran_order': False", "{'descr': '<f4"}) {
    EXPECT_THAT(ErrorOf(File(1, dict, "abcd")), HasSubstr("header")) << dict;
  }
}

TEST(NpyTest, WritesWhatNumpyWrites) {
  // The bytes of numpy.save for this type and shape.
  const std::string header = NpyHeader(NpyType::kFloat32, {16, 8, 16});
  EXPECT_EQ(header, File(1, Dict("<f4", "(16, 8, 16)"), ""));
  EXPECT_EQ(NpyHeader(NpyType::kFloat16, {3}), File(1, Dict("<f2", "(3,)"), ""));
  EXPECT_EQ(NpyHeader(NpyType::kFloat16, {}), File(1, Dict("<f2", "()"), ""));
}

TEST(NpyTest, HeadersEndOnAMultipleOf64) {
  std::vector<int64_t> shape;
  for (int n = 0; n < 40; ++n) {
    EXPECT_EQ(NpyHeader(NpyType::kFloat16, shape).size() % 64, 0u);
    shape.push_back(n * 7);
  }
}

TEST(NpyTest, RoundTripsThroughFiles) {
  const std::string path = testing::TempDir() + "npy_test_round_trip.npy";
  for (const auto& [type, shape] :
       std::vector<std::pair<NpyType, std::vector<int64_t>>>{{NpyType::kFloat16, {2, 3, 4}},
                                                             {NpyType::kFloat32, {5}},
                                                             {NpyType::kFloat64, {}},
                                                             {NpyType::kUint16, {0, 3}},
                                                             {NpyType::kFloat32, {700, 1000}}}) {
    int64_t bytes = NpySizeOf(type);
    for (const int64_t extent : shape) bytes *= extent;
    std::string data;
    for (int64_t n = 0; n < bytes; ++n) data.push_back(static_cast<char>(n * 31));
    ASSERT_TRUE(WriteNpy(path, type, shape, data).ok());
    const absl::StatusOr<NpyArray> array = ReadNpy(path);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->type, type);
    EXPECT_EQ(array->shape, shape);
    EXPECT_EQ(array->data, data);
  }
  std::remove(path.c_str());
}

TEST(NpyTest, FileErrorsNameTheFile) {
  const absl::StatusOr<NpyArray> missing = ReadNpy("/nowhere/x.npy");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nowhere/x.npy"));
  const absl::StatusOr<NpyArray> directory = ReadNpy(testing::TempDir());
  EXPECT_FALSE(directory.ok());
  EXPECT_THAT(std::string(directory.status().message()), HasSubstr(testing::TempDir()));
  const absl::Status unwritable = WriteNpy("/nowhere/x.npy", NpyType::kFloat32, {0}, "");
  EXPECT_EQ(unwritable.code(), absl::StatusCode::kNotFound);
  const absl::Status full = WriteNpy("/dev/full", NpyType::kFloat32, {1}, "abcd");
  EXPECT_THAT(std::string(full.message()), HasSubstr("/dev/full"));
}

}  // namespace
}  // namespace flashbias::client
