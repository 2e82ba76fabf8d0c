#include "safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "safetensors_header.h"
#include "temporary_folder.h"

namespace pagefill::cli {
namespace {

std::string bytes_of(uint64_t length) {
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes;
}

std::string file_of(const std::string& header, const std::string& data = "") {
  return bytes_of(header.size()) + header + data;
}

Result<Safetensors> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)));
}

Safetensors one_of_each_dtype() {
  Safetensors contents;
  contents.metadata = {{"description", "quotes \" and \\ and \xc3\xa9"}, {"empty", ""}};
  int32_t extent = 1;
  for (DType dtype :
       {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt64,
        DType::kInt32, DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    Tensor tensor = Tensor::zeros(dtype, {extent, 3});
    for (size_t i = 0; i < tensor.bytes.size(); ++i) tensor.bytes[i] = std::byte(i * 7 + 1);
    contents.tensors.emplace(dtype_name(dtype), std::move(tensor));
    ++extent;
  }
  contents.tensors.emplace("scalar", Tensor::zeros(DType::kFloat32, {}));
  contents.tensors.emplace("without elements", Tensor::zeros(DType::kFloat16, {4, 0, 2}));
  return contents;
}

TEST(Safetensors, WhatIsWrittenIsReadBack) {
  const TemporaryFolder folder;
  const Safetensors written = one_of_each_dtype();
  const Status status = write_safetensors(written, folder / "file");
  ASSERT_TRUE(status.ok()) << status.message();
  const Result<Safetensors> read = read_safetensors(folder / "file");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->metadata, written.metadata);
  EXPECT_EQ(read->tensors, written.tensors);
}

TEST(Safetensors, AFileWithoutTensorsIsAFile) {
  EXPECT_TRUE(parse(file_of("{}")).ok());
  EXPECT_TRUE(parse(file_of("{}   \n")).ok());
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":{}})")).ok());
}

TEST(Safetensors, TensorsThatLieUnalignedAreReadAligned) {
  // Three int32 from byte 9 + 8 + header on, whatever the header's length.
  for (size_t padding = 0; padding < 8; ++padding) {
    const std::string header =
        R"({"x":{"dtype":"I32","shape":[3],"data_offsets":[0,12]}})" + std::string(padding, ' ');
    const Result<Safetensors> read = parse(file_of(header, {"\1\0\0\0\2\0\0\0\3\0\0\0", 12}));
    ASSERT_TRUE(read.ok()) << read.status().message();
    const auto elements = read->tensors.at("x").elements<int32_t>();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(elements.data()) % alignof(int32_t), 0);
    EXPECT_EQ(std::vector<int32_t>(elements.begin(), elements.end()), (std::vector{1, 2, 3}));
  }
}

TEST(Safetensors, TensorsMayLieInAnyOrder) {
  const Result<Safetensors> read =
      parse(file_of(R"({"a":{"dtype":"I32","shape":[1],"data_offsets":[8,12]},)"
                    R"("b":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})",
                    std::string(12, '\1')));
  EXPECT_TRUE(read.ok()) << read.status().message();
}

TEST(Safetensors, EachTensorBeginsAlignedInAFileThatWasWritten) {
  const std::vector<std::byte> file = format_safetensors(one_of_each_dtype());
  uint64_t header_length = 0;
  std::memcpy(&header_length, file.data(), sizeof header_length);
  EXPECT_EQ(header_length % 8, 0);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, header_length);
  const auto header = parse_safetensors_header(
      text, static_cast<int64_t>(file.size()) - 8 - static_cast<int64_t>(header_length));
  ASSERT_TRUE(header.ok()) << header.status().message();
  for (const SafetensorsEntry& entry : header->entries) {
    EXPECT_EQ(entry.begin % dtype_size(entry.dtype), 0) << entry.name;
  }
}

TEST(Safetensors, AHeaderBeyondTheFormatsLimitIsRefusedBeforeItIsRead) {
  const TemporaryFolder folder;
  std::ofstream(folder / "file") << bytes_of(100'000'001) << "{";
  std::filesystem::resize_file(folder / "file", 200'000'000);  // sparse
  EXPECT_EQ(read_safetensors(folder / "file").status().message(),
            (folder / "file") + ": header length: expected at most 100000000 bytes, got 100000001");
}

TEST(Safetensors, WhatIsNoRegularFileIsRefused) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_safetensors(folder / "missing").status().message(),
            (folder / "missing") + ": cannot be opened: No such file or directory");
  EXPECT_EQ(read_safetensors(folder / ".").status().message(),
            (folder / ".") + ": expected a regular file");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(read_safetensors(folder / "pipe").status().message(),
            (folder / "pipe") + ": expected a regular file");
}

struct Malformed {
  const char* name;
  std::string file;
  std::string message;
};

std::string tensor_file(const std::string& entry, const std::string& data = "") {
  return file_of("{\"x\":" + entry + "}", data);
}

std::vector<Malformed> malformed_files() {
  const std::string four_bytes(4, '\0');
  return {
      {"Empty", "", "expected a safetensors file, got 0 bytes"},
      {"SevenBytes", "1234567", "expected a safetensors file, got 7 bytes"},
      {"HeaderBeyondTheFile", bytes_of(3) + "{}", "header length: expected at most 2 bytes, got 3"},
      {"HeaderLengthOf64Bits", bytes_of(~uint64_t{0}) + "{}",
       "header length: expected at most 2 bytes, got 18446744073709551615"},
      {"EmptyHeader", file_of(""), "header: expected a JSON object"},
      {"HeaderThatIsAnArray", file_of("[]"), "header: expected a JSON object"},
      {"SpaceBeforeTheBrace", file_of(" {}"), "header: expected a JSON object"},
      {"HeaderThatEndsEarly", file_of("{\"x\""), "header: not JSON from byte 5"},
      {"TextAfterTheHeader", file_of("{} x"), "header: not JSON from byte 4"},
      {"InvalidUtf8", file_of("{\"\xff\":1}"), "header: not JSON from byte 3"},
      {"NumberOutOfRange", tensor_file("1e999"), "header: a number is out of range"},
      {"TensorTwice",
       file_of(R"({"x":{"dtype":"I32","shape":[0],"data_offsets":[0,0]},)"
               R"("x":{"dtype":"I32","shape":[0],"data_offsets":[0,0]}})"),
       "header: \"x\" occurs twice"},
      {"MemberTwice",
       tensor_file(R"({"dtype":"I32","dtype":"I32","shape":[0],"data_offsets":[0,0]})"),
       "header: \"dtype\" occurs twice"},
      {"MetadataTwice", file_of(R"({"__metadata__":{"a":"1","a":"2"}})"),
       "header: \"a\" occurs twice"},
      {"MetadataThatIsAString", file_of(R"({"__metadata__":"a"})"),
       "__metadata__: expected an object, got \"a\""},
      {"MetadataNumber", file_of(R"({"__metadata__":{"sliding_window":4}})"),
       "__metadata__: \"sliding_window\": expected a string, got 4"},
      {"TensorThatIsANumber", tensor_file("7"), "tensor \"x\": expected an object, got 7"},
      {"NoDtype", tensor_file(R"({"shape":[0],"data_offsets":[0,0]})"),
       "tensor \"x\": dtype is missing"},
      {"NoShape", tensor_file(R"({"dtype":"I32","data_offsets":[0,0]})"),
       "tensor \"x\": shape is missing"},
      {"NoOffsets", tensor_file(R"({"dtype":"I32","shape":[0]})"),
       "tensor \"x\": data_offsets is missing"},
      {"UnknownMember",
       tensor_file(R"({"dtype":"I32","shape":[0],"data_offsets":[0,0],"strides":[1]})"),
       "tensor \"x\": expected dtype, shape and data_offsets, got \"strides\""},
      {"UnknownDtype", tensor_file(R"({"dtype":"F8_E8M0","shape":[0],"data_offsets":[0,0]})"),
       "tensor \"x\": dtype: expected F64, F32, F16, BF16, I64, I32, I8, F8_E4M3 or F8_E5M2, got "
       "\"F8_E8M0\""},
      {"DtypeThatIsANumber", tensor_file(R"({"dtype":32,"shape":[0],"data_offsets":[0,0]})"),
       "tensor \"x\": dtype: expected F64, F32, F16, BF16, I64, I32, I8, F8_E4M3 or F8_E5M2, got "
       "32"},
      {"NegativeExtent", tensor_file(R"({"dtype":"I32","shape":[-1],"data_offsets":[0,0]})"),
       "tensor \"x\": shape: expected integers from 0 to 2^63 - 1, got [-1]"},
      {"FractionalExtent", tensor_file(R"({"dtype":"I32","shape":[1.0],"data_offsets":[0,4]})"),
       "tensor \"x\": shape: expected integers from 0 to 2^63 - 1, got [1.0]"},
      {"ExtentOf2To63",
       tensor_file(R"({"dtype":"I32","shape":[9223372036854775808],"data_offsets":[0,0]})"),
       "tensor \"x\": shape: expected integers from 0 to 2^63 - 1, got [9223372036854775808]"},
      {"ShapeThatIsANumber", tensor_file(R"({"dtype":"I32","shape":1,"data_offsets":[0,4]})"),
       "tensor \"x\": shape: expected integers from 0 to 2^63 - 1, got 1"},
      {"ShapeThatOverflowsTo0",
       tensor_file(R"({"dtype":"I32","shape":[4294967296,4294967296],"data_offsets":[0,0]})"),
       "tensor \"x\": shape: more than 2^63 bytes"},
      {"ShapeThatOverflowsBehindAn0",
       tensor_file(R"({"dtype":"I32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})"),
       "tensor \"x\": shape: more than 2^63 bytes"},
      {"OneOffset", tensor_file(R"({"dtype":"I32","shape":[0],"data_offsets":[0]})"),
       "tensor \"x\": data_offsets: expected [begin, end] with begin <= end, got [0]"},
      {"OffsetsBackwards",
       tensor_file(R"({"dtype":"I32","shape":[1],"data_offsets":[4,0]})", four_bytes),
       "tensor \"x\": data_offsets: expected [begin, end] with begin <= end, got [4,0]"},
      {"OffsetsThatDisagreeWithTheShape",
       tensor_file(R"({"dtype":"I32","shape":[2],"data_offsets":[0,4]})", four_bytes),
       "tensor \"x\": data_offsets: expected 8 bytes for its dtype and shape, got 4"},
      {"OffsetsBeyondTheData",
       tensor_file(R"({"dtype":"I32","shape":[1],"data_offsets":[0,4]})", "123"),
       "tensor \"x\": data_offsets: expected to begin at 0, where the tensor before ends, and to "
       "end at "
       "most at 3, where the data ends, got [0, 4]"},
      {"HoleBeforeTheFirst",
       tensor_file(R"({"dtype":"I32","shape":[1],"data_offsets":[4,8]})", four_bytes + four_bytes),
       "tensor \"x\": data_offsets: expected to begin at 0, where the tensor before ends, and to "
       "end at "
       "most at 8, where the data ends, got [4, 8]"},
      {"Overlap",
       file_of(R"({"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},)"
               R"("b":{"dtype":"I32","shape":[2],"data_offsets":[4,12]}})",
               four_bytes + four_bytes + four_bytes),
       "tensor \"b\": data_offsets: expected to begin at 8, where the tensor before ends, and to "
       "end at "
       "most at 12, where the data ends, got [4, 12]"},
      {"DataBehindTheLast",
       tensor_file(R"({"dtype":"I32","shape":[1],"data_offsets":[0,4]})", four_bytes + "5"),
       "data: expected 4 bytes, as the header says, got 5"},
      {"DataWithoutTensors", file_of("{}", "1"),
       "data: expected 0 bytes, as the header says, got 1"},
      {"LongName", file_of("{\"" + std::string(1000, 'n') + "\":1}"),
       "tensor \"" + std::string(79, 'n') + "...: expected an object, got 1"},
  };
}

TEST(Safetensors, AMalformedFileIsRefusedByWhatIsWrongWithIt) {
  for (const Malformed& malformed : malformed_files()) {
    const Result<Safetensors> read = parse(malformed.file);
    EXPECT_EQ(read.status().message(), malformed.message) << malformed.name;
    EXPECT_EQ(read.status().code(), StatusCode::kInvalidArgument) << malformed.name;
  }
}

}  // namespace
}  // namespace pagefill::cli
