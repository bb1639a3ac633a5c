#include "check.h"

namespace {

// The cipher again, in plain integers, straight from the paper.
void reference(uint32_t c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    std::memcpy(c, next, sizeof next);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Known answers of the Random123 distribution: counter, key, output. The counter's first word is a quad number.
void known_answers() {
  struct Case {
    uint32_t counter[4];
    uint64_t key;
    uint32_t expected[4];
  };
  const Case cases[] = {
      {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       0x299f31d0a4093822ull,
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Case& c : cases) {
    uint32_t words[4];
    std::memcpy(words, c.counter, sizeof words);
    reference(words, static_cast<uint32_t>(c.key), static_cast<uint32_t>(c.key >> 32));
    CHECK(!std::memcmp(words, c.expected, sizeof words));
  }
  uint32_t words[4];
  const int64_t zero = 0;
  CHECK(prunefast_philox(PRUNEFAST_WORDS, words, 0, 1, 4, 0, 0, &zero, 1) == PRUNEFAST_OK);
  CHECK(!std::memcmp(words, cases[0].expected, sizeof words));
}

void every_size(int32_t threads) {
  const int64_t positions[] = {0, 1, -1, (int64_t{1} << 40) + 7};
  for (const int64_t elements : {1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 4099, 70001}) {
    Guarded<uint32_t> words(4 * elements);
    Guarded<float> normals(4 * elements), uniforms(4 * elements);
    Guarded<uint16_t> halves(4 * elements);
    const uint64_t seed = 0xFEDCBA9876543210ull;
    CHECK(prunefast_philox(PRUNEFAST_WORDS, words.data(), 0, 4, elements, seed, 3, positions, threads) == PRUNEFAST_OK);
    CHECK(prunefast_philox(PRUNEFAST_UNIFORM, uniforms.data(), 0, 4, elements, seed, 3, positions, threads) == 0);
    CHECK(prunefast_philox(PRUNEFAST_NORMAL, normals.data(), 0, 4, elements, seed, 3, positions, threads) == 0);
    CHECK(prunefast_philox(PRUNEFAST_NORMAL, halves.data(), PRUNEFAST_BFLOAT16, 4, elements, seed, 3, positions,
                           threads) == 0);
    double worst = 0;
    for (int64_t s = 0; s < 4; ++s) {
      for (int64_t quad = 0; 4 * quad < elements; ++quad) {
        const uint64_t position = static_cast<uint64_t>(positions[s]);
        uint32_t c[4] = {static_cast<uint32_t>(quad), 3, static_cast<uint32_t>(position),
                         static_cast<uint32_t>(position >> 32)};
        reference(c, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        for (int64_t j = 0; j < 4 && 4 * quad + j < elements; ++j) {
          const int64_t at = s * elements + 4 * quad + j;
          CHECK(words[at] == c[j]);
          const double u = (c[j] / 512 + 0.5) / 8388608.0;
          CHECK(uniforms[at] == u);
          const double u1 = (c[j / 2 * 2] / 512 + 0.5) / 8388608.0, u2 = (c[j / 2 * 2 + 1] / 512 + 0.5) / 8388608.0;
          const double angle = 2 * M_PI * u2,
                       z = std::sqrt(-2 * std::log(u1)) * (j % 2 ? std::sin(angle) : std::cos(angle));
          worst = std::fmax(worst, std::fabs(normals[at] - z));
          uint32_t bits = static_cast<uint32_t>(halves[at]) << 16;
          float half;
          std::memcpy(&half, &bits, sizeof half);
          CHECK(std::fabs(half - normals[at]) <= std::fabs(normals[at]) / 256);
        }
      }
    }
    CHECK(worst < 1.5e-6);
    CHECK(words.intact() && uniforms.intact() && normals.intact() && halves.intact());
  }
}

}  // namespace

int main() {
  known_answers();
  every_size(1);
  every_size(3);
  CHECK(prunefast_philox(PRUNEFAST_NORMAL, nullptr, 0, 0, 0, 0, 0, nullptr, 1) == PRUNEFAST_OK);
  CHECK(prunefast_philox(PRUNEFAST_UNIFORM, nullptr, PRUNEFAST_FLOAT16, 0, 0, 0, 0, nullptr, 1) ==
        PRUNEFAST_BAD_ARGUMENT);
  CHECK(prunefast_philox(7, nullptr, 0, 0, 0, 0, 0, nullptr, 1) == PRUNEFAST_BAD_ARGUMENT);
  return summary("philox");
}
