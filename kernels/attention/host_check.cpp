// Random streams through the kernels on the CPU against a reference in fp64: forward and every gradient.
//
//     host_check FIRST_CASE NUM_CASES
//
// Every case runs under a natural, a reversed and a shuffled schedule of threads, with equal bits. Outputs start as NaN, inputs
// are allocated to the byte (build with sanitizers), and rows beyond the stream do not exist. Prints one line per failure and a
// summary; exit status 1 if any case failed.
#include "attention.cu"

#include "../common/checking.h"

namespace {

struct Case {
    std::vector<int> lengths, prefixes;
    std::vector<int> owners;  // owner of the prefix each sequence shares, -1: none; empty: kernels without sharing
    int heads = 1, format = 0;
    double probability = 0;
    bool whole = false;  // short sequences take the whole-sequence backward kernel, if there is one and no prefix is shared
    unsigned site_key = 0;
    float query_scale = 1;
};

Case make_case(unsigned number) {
    static const int edges[] = {1, 2, 3, 15, 16, 17, 20, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 79, 80, 81, 96, 101, 112, 127,
                                128, 129, 132, 145, 191, 192, 193, 230};
    std::mt19937 random(number * 2654435761u + 1);
    Case c;
    int total = 0;
    const int wanted = draw(random, 0, 5);
    while (int(c.lengths.size()) < wanted) {
        const int length = draw(random, 0, 3) ? edges[draw(random, 0, int(std::size(edges)) - 1)] : draw(random, 1, 150);
        if (total + length > 330) break;
        const int prefixes[] = {length, 0, draw(random, 0, length), length - 1, length / 16 * 16, std::min(length, 64)};
        c.lengths.push_back(length);
        c.prefixes.push_back(prefixes[draw(random, 0, 5)]);
        total += length;
    }
    c.heads = draw(random, 1, 3);
#if !defined(UNIMO_HALF_ONLY)
    c.format = draw(random, 0, 1);
#endif
    const double probabilities[] = {0, 0.1, 0.1, 0.5};
    c.probability = probabilities[draw(random, 0, 3)];
    c.site_key = unsigned(draw(random, 1, 100)) * 0x9E3779B9u;
    const float scales[] = {1, 1, 4, 0.1f};
    c.query_scale = scales[draw(random, 0, 3)];
    if (draw(random, 0, 1)) {  // some sequences, also short ones, see the prefix of one that shares none itself
        for (int more = draw(random, 0, 3); more > 0; --more) {
            c.lengths.push_back(draw(random, 1, 40));
            c.prefixes.push_back(draw(random, 0, c.lengths.back()));
        }
        const int last = int(c.lengths.size()) - 1;
        std::vector<bool> shares;
        for (int s = 0; s <= last; ++s) shares.push_back(draw(random, 0, 2) > 0);
        for (int s = 0; s <= last; ++s) {
            int owner = draw(random, 0, last);
            while (owner >= 0 && shares[owner]) --owner;
            c.owners.push_back(shares[s] ? owner : -1);
        }
    }
    c.whole = c.owners.empty() && draw(random, 0, 2);
    return c;
}

// Per sequence, the columns of a table of blocks for sharing; and the positions of sequences that share.
struct Sharing {
    std::vector<int> shared_start, shared, listed, num_listed, positions;
};

Sharing sharing_of(const Case& c) {
    const std::size_t sequences = c.owners.size();
    Sharing sharing{std::vector<int>(sequences), std::vector<int>(sequences), {}, {}, {}};
    std::vector<int> starts{0};
    for (int length : c.lengths) starts.push_back(starts.back() + length);
    for (std::size_t owner = 0; owner < sequences; ++owner) {
        sharing.listed.push_back(int(sharing.positions.size()));
        for (std::size_t s = 0; s < sequences; ++s) {
            if (c.owners[s] != int(owner)) continue;
            sharing.shared_start[s] = starts[owner];
            sharing.shared[s] = c.prefixes[owner];
            for (int i = starts[s]; i < starts[s + 1]; ++i) sharing.positions.push_back(i);
        }
        sharing.num_listed.push_back(int(sharing.positions.size()) - sharing.listed.back());
    }
    return sharing;
}

// Exact values of a 16-bit format, widened.
struct Tensor {
    std::vector<std::uint16_t> bits;
    std::vector<double> values;
};

template <class Format>
Tensor random_tensor(std::size_t count, std::mt19937& random, float scale) {
    std::normal_distribution<float> normal(0, scale);
    Tensor tensor;
    for (std::size_t i = 0; i < count; ++i) {
        tensor.bits.push_back(to_bits<Format>(normal(random)));
        tensor.values.push_back(from_bits<Format>(tensor.bits.back()));
    }
    return tensor;
}

struct Result {
    std::vector<double> output, gradient;
};

Result exact(const Case& c, const std::vector<double>& input, const std::vector<double>& upstream,
             const std::vector<unsigned>& position_keys, int threshold, double keep_scale) {
    const int heads = c.heads, D = unimo::kSize;
    Result result{std::vector<double>(upstream.size()), std::vector<double>(input.size())};
    const Sharing sharing = sharing_of(c);
    int start = 0;
    for (std::size_t s = 0; s < c.lengths.size(); start += c.lengths[s++])
        for (int head = 0; head < heads; ++head) {
            const int shared = c.owners.empty() ? 0 : sharing.shared[s];
            const auto at = [&](int position, int part) { return ((std::size_t(position) * 3 + part) * heads + head) * D; };
            const auto query_at = [&](int row) { return at(start + row, 0); };
            const auto seen_at = [&](int j, int part) {
                return at(j < shared ? sharing.shared_start[s] + j : start + j - shared, part);
            };
            const auto out = [&](int row) { return (std::size_t(start + row) * heads + head) * D; };
            const auto dot = [&](const double* a, const double* b) {
                double sum = 0;
                for (int d = 0; d < D; ++d) sum += a[d] * b[d];
                return sum;
            };
            for (int i = 0; i < c.lengths[s]; ++i) {
                const int visible = shared + std::max(c.prefixes[s], i + 1);
                const unsigned key = unimo::head_row_key(position_keys[start + i], c.site_key, head);
                std::vector<double> weight(visible), keep(visible), slope(visible);
                double highest = -1e300, sum = 0, delta = 0;
                for (int j = 0; j < visible; ++j) {
                    weight[j] = dot(&input[query_at(i)], &input[seen_at(j, 1)]) / 8;
                    highest = std::max(highest, weight[j]);
                }
                for (double& w : weight) sum += w = std::exp(w - highest);
                for (int j = 0; j < visible; ++j) {
                    const unsigned word = unimo::dropout_word(key, j & ~1);
                    const int column = j & 1 ? int(word) >> 16 : int(std::int16_t(word & 0xffff));
                    weight[j] /= sum;
                    keep[j] = column >= threshold ? keep_scale : 0;
                    slope[j] = keep[j] * dot(&upstream[out(i)], &input[seen_at(j, 2)]);
                    delta += weight[j] * slope[j];
                }
                for (int j = 0; j < visible; ++j)
                    for (int d = 0; d < D; ++d) {
                        const double score = weight[j] * (slope[j] - delta) / 8;
                        result.output[out(i) + d] += weight[j] * keep[j] * input[seen_at(j, 2) + d];
                        result.gradient[query_at(i) + d] += score * input[seen_at(j, 1) + d];
                        result.gradient[seen_at(j, 1) + d] += score * input[query_at(i) + d];
                        result.gradient[seen_at(j, 2) + d] += weight[j] * keep[j] * upstream[out(i) + d];
                    }
            }
        }
    return result;
}

// Largest and root-mean-square error, in roundings of the format at the tensor's largest value, or at `least` if that is larger.
template <class Format>
bool agrees(const std::vector<std::uint16_t>& found, const std::vector<double>& truth, std::size_t modulus, std::size_t from,
            std::size_t to, double least, const std::string& what) {
    double largest = 0, worst = 0, squares = 0, truth_squares = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
        if (i % modulus < from || i % modulus >= to) continue;
        const double error = std::fabs(from_bits<Format>(found[i]) - truth[i]);
        worst = error > worst || std::isnan(error) ? error : worst;
        squares += error * error;
        truth_squares += truth[i] * truth[i];
        largest = std::max(largest, std::fabs(truth[i]));
        ++count;
    }
    if (count == 0) return true;
    const double rounding = std::is_same_v<Format, unimo::Half> ? 1.0 / 1024 : 1.0 / 128;
    const double scale = std::max({largest, least, 0.05}), mean_scale = std::max({std::sqrt(truth_squares / count), least, 0.01});
    if (worst <= 3 * rounding * scale && std::sqrt(squares / count) <= rounding * mean_scale) return true;
    std::printf("%s: largest error %.3g of %.3g, root mean square %.3g of %.3g\n", what.c_str(), worst, largest,
                std::sqrt(squares / count), std::sqrt(truth_squares / count));
    return false;
}

template <class Format>
bool run_case(const Case& c, unsigned number) {
    std::mt19937 random(number + 17);
    int positions = 0;
    std::vector<int> tiles, sequences;
    const Sharing sharing = sharing_of(c);
    const int columns = c.owners.empty() ? 4 : 8;
    for (std::size_t s = 0; s < c.lengths.size(); positions += c.lengths[s++])
        for (int first = 0; first < c.lengths[s]; first += unimo_attention_block_rows()) {
            tiles.insert(tiles.end(), {positions, c.lengths[s], c.prefixes[s], first});
            if (!c.owners.empty())
                tiles.insert(tiles.end(), {sharing.shared_start[s], sharing.shared[s], sharing.listed[s], sharing.num_listed[s]});
        }
    for (std::size_t entry = 0; entry < tiles.size(); entry += std::size_t(columns))
        if (tiles[entry + 3] == 0) sequences.insert(sequences.end(), tiles.data() + entry, tiles.data() + entry + columns);
    if (number % 2) tiles.resize(tiles.size() + std::size_t(columns));  // an unused entry
    std::vector<int> key_tiles;  // another order
    for (std::size_t entry = tiles.size(); entry > 0; entry -= std::size_t(columns))
        key_tiles.insert(key_tiles.end(), tiles.data() + entry - columns, tiles.data() + entry);
    const std::size_t row = std::size_t(c.heads) * unimo::kSize;
    Tensor input = random_tensor<Format>(positions * 3 * row, random, 1);
    for (std::size_t i = 0; i < input.bits.size(); ++i)
        if (i / row % 3 == 0) {
            input.bits[i] = to_bits<Format>(float(input.values[i]) * c.query_scale);
            input.values[i] = from_bits<Format>(input.bits[i]);
        }
    const Tensor upstream = random_tensor<Format>(positions * row, random, 1);
    std::vector<unsigned> position_keys(positions);
    for (unsigned& key : position_keys) key = unsigned(random());
    const int dropped = int(std::lround(c.probability * 65536)), threshold = dropped - 32768;
    const double keep_scale = 65536.0 / (65536 - dropped);

    std::vector<std::uint16_t> first_output, first_gradient;
    for (int schedule : {0, 1, int(number) + 2}) {
        unimo_host_schedule(schedule);
        std::vector<std::uint16_t> output(positions * row, 0xffff), gradient(positions * 3 * row, 0xffff);
        std::vector<float> log_sums(std::size_t(positions) * c.heads, NAN), deltas(log_sums);
        std::vector<unsigned> row_keys(log_sums.size(), 0xffffffffu);
        unimo::AttentionCall call{};
        unimo::AttentionArguments& arguments = call.arguments;
        arguments.query_key_value = input.bits.data();
        arguments.output = output.data();
        arguments.log_sums = log_sums.data();
        arguments.output_gradient = upstream.bits.data();
        arguments.input_gradient = gradient.data();
        arguments.deltas = deltas.data();
        arguments.row_keys = row_keys.data();
        arguments.tiles = tiles.data(), call.key_tiles = key_tiles.data(), call.sequences = sequences.data();
        const int none = 0;
        arguments.sharing = c.owners.empty() ? nullptr : sharing.positions.empty() ? &none : sharing.positions.data();
        arguments.position_keys = c.probability > 0 ? position_keys.data() : nullptr;
        arguments.num_tiles = int(tiles.size()) / columns, call.num_sequences = int(sequences.size()) / columns;
        arguments.num_positions = positions;
        arguments.num_heads = c.heads;
        arguments.dropout_threshold = threshold;
        arguments.site_key = c.site_key;
        arguments.keep_scale = float(keep_scale);
        arguments.scale = float(0.125 / std::log(2.0));
        const bool all_short = std::all_of(c.lengths.begin(), c.lengths.end(),
                                           [](int length) { return length <= unimo_attention_whole_length(); });
        arguments.whole = !c.whole ? unimo::kNotWhole : all_short ? unimo::kAllWhole : unimo::kShortWhole;
        require(unimo_attention_forward(&call, c.format, nullptr) == 0, "forward refused");
        require(unimo_attention_backward(&call, c.format, nullptr) == 0, "backward refused");
        if (schedule == 0) {
            first_output = output;
            first_gradient = gradient;
        } else if (output != first_output || gradient != first_gradient) {
            std::printf("case %u: schedule %d gives other bits\n", number, schedule);
            return false;
        }
    }
    const Result truth = exact(c, input.values, upstream.values, position_keys, threshold, keep_scale);
    const std::string name = "case " + std::to_string(number) + " ";
    bool good = agrees<Format>(first_output, truth.output, 1, 0, 1, 0, name + "output");
    // Gradients of queries and keys are differences of products. With few positions they cancel, and what is left is the
    // rounding of these products, about 1 times a probability and the other operand.
    const double noise = std::max(1.f, c.query_scale) / std::max(1, positions);
    const char* const parts[] = {"queries", "keys", "values"};
    for (std::size_t part = 0; part < 3; ++part)
        good &= agrees<Format>(first_gradient, truth.gradient, 3 * row, part * row, (part + 1) * row, part < 2 ? noise : 0,
                               name + "gradient of " + parts[part]);
    if (!good) {
        std::printf("  format %d, heads %d, dropout %g, query scale %g%s, lengths/prefixes (of):", c.format, c.heads, c.probability,
                    double(c.query_scale), c.whole ? ", short ones whole" : "");
        for (std::size_t s = 0; s < c.lengths.size(); ++s) {
            std::printf(" %d/%d", c.lengths[s], c.prefixes[s]);
            if (!c.owners.empty()) std::printf("(%d)", c.owners[s]);
        }
        std::printf("\n");
    }
    return good;
}

bool check(unsigned number) {
    const Case c = make_case(number);
    return c.format == 1 ? run_case<OtherFormat>(c, number) : run_case<unimo::Half>(c, number);
}

}  // namespace

int main(int count, char** words) { return run_cases(count, words, check, check); }
