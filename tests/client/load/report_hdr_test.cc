#include "client/load/report/report_hdr.h"

#include <string>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

// What HdrHistogram 2.1.11 (Java) writes for the same microseconds:
//   new Histogram(1, 120000000, 3), outputPercentileDistribution(out, 5, 1000.0)
// The values are such that both histograms' buckets hold them exactly.

TEST(ReportHdrTest, WritesWhatHdrHistogramDoes) {
  LatencyHistogram histogram;
  for (int64_t n = 1; n <= 1200; ++n) {
    histogram.Record(absl::Microseconds((n * n * n * 31 % 2047) * 2 % 4094 + 1));
  }
  EXPECT_EQ(FormatHdrPercentiles(histogram),
            R"hgrm(       Value     Percentile TotalCount 1/(1-Percentile)

       0.005 0.000000000000          1           1.00
       0.399 0.100000000000        120           1.11
       0.783 0.200000000000        240           1.25
       1.193 0.300000000000        360           1.43
       1.595 0.400000000000        480           1.67
       1.989 0.500000000000        600           2.00
       2.207 0.550000000000        660           2.22
       2.423 0.600000000000        720           2.50
       2.599 0.650000000000        780           2.86
       2.813 0.700000000000        840           3.33
       3.041 0.750000000000        900           4.00
       3.147 0.775000000000        930           4.44
       3.237 0.800000000000        960           5.00
       3.333 0.825000000000        990           5.71
       3.445 0.850000000000       1020           6.67
       3.545 0.875000000000       1050           8.00
       3.597 0.887500000000       1065           8.89
       3.661 0.900000000000       1080          10.00
       3.711 0.912500000000       1095          11.43
       3.769 0.925000000000       1110          13.33
       3.803 0.937500000000       1125          16.00
       3.839 0.943750000000       1133          17.78
       3.869 0.950000000000       1140          20.00
       3.909 0.956250000000       1148          22.86
       3.941 0.962500000000       1155          26.67
       3.967 0.968750000000       1163          32.00
       3.983 0.971875000000       1167          35.56
       3.989 0.975000000000       1170          40.00
       3.997 0.978125000000       1174          45.71
       4.011 0.981250000000       1178          53.33
       4.025 0.984375000000       1182          64.00
       4.041 0.985937500000       1184          71.11
       4.045 0.987500000000       1185          80.00
       4.049 0.989062500000       1187          91.43
       4.053 0.990625000000       1189         106.67
       4.061 0.992187500000       1191         128.00
       4.067 0.992968750000       1192         142.22
       4.071 0.993750000000       1193         160.00
       4.073 0.994531250000       1194         182.86
       4.075 0.995312500000       1195         213.33
       4.081 0.996093750000       1196         256.00
       4.081 0.996484375000       1196         284.44
       4.083 0.996875000000       1197         320.00
       4.083 0.997265625000       1197         365.71
       4.085 0.997656250000       1198         426.67
       4.085 0.998046875000       1198         512.00
       4.085 0.998242187500       1198         568.89
       4.087 0.998437500000       1199         640.00
       4.087 0.998632812500       1199         731.43
       4.087 0.998828125000       1199         853.33
       4.087 0.999023437500       1199        1024.00
       4.087 0.999121093750       1199        1137.78
       4.093 0.999218750000       1200        1280.00
       4.093 1.000000000000       1200
#[Mean    =        2.016, StdDeviation   =        1.175]
#[Max     =        4.093, Total count    =         1200]
#[Buckets =           17, SubBuckets     =         2048]
)hgrm");
}

TEST(ReportHdrTest, FewValues) {
  LatencyHistogram histogram;
  for (const int us : {25, 50, 75}) histogram.Record(absl::Microseconds(us));
  EXPECT_EQ(FormatHdrPercentiles(histogram),
            R"hgrm(       Value     Percentile TotalCount 1/(1-Percentile)

       0.025 0.000000000000          1           1.00
       0.025 0.100000000000          1           1.11
       0.025 0.200000000000          1           1.25
       0.025 0.300000000000          1           1.43
       0.050 0.400000000000          2           1.67
       0.050 0.500000000000          2           2.00
       0.050 0.550000000000          2           2.22
       0.050 0.600000000000          2           2.50
       0.050 0.650000000000          2           2.86
       0.075 0.700000000000          3           3.33
       0.075 1.000000000000          3
#[Mean    =        0.050, StdDeviation   =        0.020]
#[Max     =        0.075, Total count    =            3]
#[Buckets =           17, SubBuckets     =         2048]
)hgrm");
}

TEST(ReportHdrTest, Empty) {
  EXPECT_EQ(FormatHdrPercentiles(LatencyHistogram()),
            R"hgrm(       Value     Percentile TotalCount 1/(1-Percentile)

#[Mean    =        0.000, StdDeviation   =        0.000]
#[Max     =        0.000, Total count    =            0]
#[Buckets =           17, SubBuckets     =         2048]
)hgrm");
}

TEST(ReportHdrTest, TheLargestValueIsExactEvenBeyondTheRange) {
  LatencyHistogram histogram;
  histogram.Record(absl::Seconds(500));
  const std::string text = FormatHdrPercentiles(histogram);
  EXPECT_NE(text.find("\n  500000.000 1.000000000000          1\n"), std::string::npos) << text;
  EXPECT_NE(text.find("#[Max     =   500000.000, Total count    =            1]\n"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace flashbias::client
