// Random score matrices, pairs and segments through the contrastive kernels against fp64.
//
//     host_check FIRST_CASE NUM_CASES
//
// On the CPU (UNIMO_HOST) every case runs under a natural, a reversed and a shuffled schedule of threads, with equal bits;
// compiled by nvcc (`nvcc -x cu`) it runs three times on the GPU, for compute-sanitizer. Outputs and the padding of rows start
// as NaN. Prints one line per failure and a summary; exit status 1 if any case failed.
#include "contrastive.cu"

#include <iterator>

#include "../common/checking.h"

namespace {

using unimo::BlockArguments;

struct Sizes {
    int rows, columns, chunk_rows, chunk_columns, row_lists, column_lists, groups;
    bool both;
    float inverse_temperature;
};

Sizes make_sizes(std::mt19937& random) {
    static const int edges[] = {0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 200};
    static const int wide_edges[] = {0, 1, 3, 31, 33, 255, 256, 257, 1000, 1023, 1024, 1025, 1290, 1700};
    static const float temperatures[] = {0.001f, 0.01f, 0.07f, 1.f};
    Sizes s;
    s.rows = draw(random, 0, 2) ? edges[draw(random, 0, int(std::size(edges)) - 1)] : draw(random, 1, 150);
    s.columns = draw(random, 0, 2) ? wide_edges[draw(random, 0, int(std::size(wide_edges)) - 1)] : draw(random, 1, 1500);
    s.chunk_rows = draw(random, 0, 1) ? 64 : 128;
    s.chunk_columns = draw(random, 0, 1) ? 1024 : draw(random, 9, 40) * 32;
    s.row_lists = draw(random, 0, 3) ? 1 : draw(random, 0, 6);
    s.column_lists = draw(random, 0, 3) ? 1 : draw(random, 0, 6);
    s.groups = draw(random, 0, 3) ? 1 : draw(random, 2, 4);
    s.both = draw(random, 0, 1);
    s.inverse_temperature = 1 / temperatures[draw(random, 0, 3)];
    return s;
}

struct Truth {
    std::vector<double> logs, best, weights, sizes;  // weights: [rows, columns]; sizes: of the terms in their sums
    std::vector<double> column_logs, column_best, temperature;
};

// The rule and the sums again, in fp64 and without the kernels' helpers.
struct Inputs {
    Sizes s;
    std::vector<float> cosines;
    Memory<long long> row_keys, column_keys, row_items, column_items;
    Memory<float> row_gradients, column_gradients;

    Inputs(const Sizes& sizes, std::mt19937& random)
        : s(sizes), cosines(std::size_t(sizes.rows) * sizes.columns), row_keys(sizes.rows * 4),
          column_keys(sizes.columns * 4), row_items(sizes.rows * sizes.row_lists),
          column_items(sizes.columns * sizes.column_lists), row_gradients(sizes.rows), column_gradients(sizes.columns) {
        const bool alike = draw(random, 0, 3) == 0;
        for (float& cosine : cosines) cosine = alike ? draw(random, 0.99f, 1.f) : draw(random, -1.f, 1.f);
        for (int side = 0; side < 2; ++side) {
            Memory<long long>& keys = side ? column_keys : row_keys;
            const int count = side ? s.columns : s.rows;
            for (int i = 0; i < count; ++i) {
                keys[4 * i] = i * s.groups / count;
                keys[4 * i + 1] = i + 5'000'000'000LL;
                keys[4 * i + 2] = i / 3;
                keys[4 * i + 3] = draw(random, 0, 9) ? i : draw(random, 0, 20);
            }
            Memory<long long>& items = side ? column_items : row_items;
            const int width = side ? s.column_lists : s.row_lists;
            for (int i = 0; i < count * width; ++i) items[i] = i % width == 0 ? i / width : draw(random, -1, 40);
            Memory<float>& gradients = side ? column_gradients : row_gradients;
            for (int i = 0; i < count; ++i) gradients[i] = draw(random, 0, 4) ? draw(random, -1.f, 1.f) : 0.f;
        }
    }
    bool allowed(int i, int j, bool for_row) {
        if (row_keys[4 * i] != column_keys[4 * j]) return false;
        for (int key : {1, 2})
            if (row_keys[4 * i + key] == column_keys[4 * j + key]) return false;
        const long long item = for_row ? column_keys[4 * j + 3] : row_keys[4 * i + 3];
        Memory<long long>& items = for_row ? row_items : column_items;
        const int width = for_row ? s.row_lists : s.column_lists, at = for_row ? i : j;
        for (int k = 0; k < width; ++k)
            if (items[at * width + k] == item) return false;
        return true;
    }
    Truth exact(double scale) {
        Truth truth;
        truth.weights.resize(cosines.size());
        truth.sizes.resize(cosines.size());
        truth.temperature.resize(s.rows);
        for (int side = 0; side < 2; ++side) {
            const int count = side ? s.columns : s.rows, others = side ? s.rows : s.columns;
            for (int i = 0; i < count; ++i) {
                double best = -INFINITY, sum = 0;
                const auto at = [&](int j) { return side ? std::size_t(j) * s.columns + i : std::size_t(i) * s.columns + j; };
                const auto may = [&](int j) { return side ? allowed(j, i, false) : allowed(i, j, true); };
                for (int j = 0; j < others; ++j)
                    if (may(j)) best = std::fmax(best, cosines[at(j)]);
                for (int j = 0; j < others; ++j)
                    if (may(j)) sum += std::exp((cosines[at(j)] - best) * s.inverse_temperature);
                const double log = sum > 0 ? best * s.inverse_temperature + std::log(sum) : -INFINITY;
                (side ? truth.column_logs : truth.logs).push_back(log);
                (side ? truth.column_best : truth.best).push_back(best);
                if (side && !s.both) continue;
                for (int j = 0; j < others; ++j)
                    if (may(j)) {
                        const double weight = scale * (side ? column_gradients[i] : row_gradients[i]) *
                                              std::exp(cosines[at(j)] * double(s.inverse_temperature) - log);
                        truth.weights[at(j)] += weight;
                        truth.sizes[at(j)] += std::fabs(weight);
                    }
            }
        }
        for (std::size_t i = 0; i < cosines.size(); ++i)
            truth.temperature[i / s.columns] += truth.weights[i] * cosines[i];
        return truth;
    }
};

template <class Format>
bool check_blocks(unsigned number) {
    std::mt19937 random(number * 2654435761u + 7);
    const Sizes s = make_sizes(random);
    Inputs inputs(s, random);
    const float scale_value = 1000.f;
    const Truth truth = inputs.exact(scale_value);
    const std::string name = "case " + std::to_string(number) + " ";
    const int bands = (s.rows + 63) / 64, words = (s.columns + 31) / 32;
    std::vector<unsigned char> first_bits;
    bool good = true;
    for (int schedule : {0, 1, int(number) + 2}) {
        start_run(schedule);
        const int pitch = (std::min(s.chunk_columns, s.columns) + 7) / 8 * 8;
        Memory<float> scores(std::size_t(std::min(s.chunk_rows, s.rows)) * pitch), inverse(1), scale(1), row_maxima(s.rows),
            row_sums(s.rows), column_maxima(s.columns), column_sums(s.columns), row_logs(s.rows), column_logs(s.columns),
            temperature(s.rows), row_partials(std::size_t(2) * s.rows * 2), column_partials(std::size_t(4) * s.columns);
        Memory<unsigned> conflicts(std::size_t(bands) * words);
        Memory<std::uint16_t> weights(inputs.cosines.size());
        inverse[0] = s.inverse_temperature, scale[0] = scale_value;
        if (s.rows == 0 || s.columns == 0) {  // the caller fills these in
            for (Memory<float>* tensor : {&row_maxima, &column_maxima, &row_logs, &column_logs}) tensor->fill(-INFINITY);
            temperature.fill(0);
        }
        const auto at = [&](int row, int column) {
            BlockArguments a{};
            a.scores = scores.get(), a.pitch = pitch;
            a.row_keys = inputs.row_keys.get() + 4 * row, a.column_keys = inputs.column_keys.get() + 4 * column;
            a.row_items = inputs.row_items.get() + row * s.row_lists, a.row_items_width = s.row_lists;
            a.column_items = inputs.column_items.get() + column * s.column_lists, a.column_items_width = s.column_lists;
            a.conflicts = conflicts.get() + row / 64 * words + column / 32, a.conflict_stride = words;
            a.inverse_temperature = inverse.get(), a.weight_scale = scale.get();
            a.row_maxima = row_maxima.get() + row, a.row_sums = row_sums.get() + row;
            a.row_partials = row_partials.get(), a.column_partials = column_partials.get();
            a.row_logs = row_logs.get() + row, a.row_gradients = inputs.row_gradients.get() + row;
            a.temperature_sums = temperature.get() + row;
            a.row_results = row_logs.get() + row, a.column_results = column_logs.get() + column;
            a.begins_rows = column == 0, a.begins_columns = row == 0;
            if (s.both) {
                a.column_maxima = column_maxima.get() + column, a.column_sums = column_sums.get() + column;
                a.column_logs = column_logs.get() + column, a.column_gradients = inputs.column_gradients.get() + column;
            }
            a.num_rows = std::min(s.chunk_rows, s.rows - row), a.num_columns = std::min(s.chunk_columns, s.columns - column);
            return a;
        };
        const auto score = [&](int row, int column) {
            std::memset(scores.get(), 0xff, scores.size() * 4);
            const BlockArguments a = at(row, column);
            for (int i = 0; i < a.num_rows; ++i)
                std::memcpy(scores.get() + std::size_t(i) * pitch,
                            &inputs.cosines[std::size_t(row + i) * s.columns + column], std::size_t(a.num_columns) * 4);
            return a;
        };
        BlockArguments whole = at(0, 0);
        whole.num_rows = s.rows, whole.num_columns = s.columns;
        require(unimo_contrastive_conflicts(&whole, kFormatNumber<Format>, nullptr) == 0, "conflicts refused");
        finish_run();
        for (int row = 0; row < s.rows; row += s.chunk_rows)
            for (int column = 0; column < s.columns; column += s.chunk_columns) {
                const BlockArguments a = score(row, column);
                require(unimo_contrastive_statistics(&a, kFormatNumber<Format>, nullptr) == 0, "statistics refused");
                finish_run();
            }
        for (int row = 0; row < s.rows; row += s.chunk_rows)
            for (int column = 0; column < s.columns; column += s.chunk_columns) {
                const BlockArguments a = score(row, column);
                require(unimo_contrastive_weights(&a, kFormatNumber<Format>, nullptr) == 0, "weights refused");
                finish_run();
                for (int i = 0; i < a.num_rows; ++i)
                    std::memcpy(weights.get() + std::size_t(row + i) * s.columns + column,
                                scores.get() + std::size_t(i) * pitch, std::size_t(a.num_columns) * 2);
            }
        std::vector<unsigned char> bits;
        for (Memory<float>* tensor : {&row_logs, &column_logs, &row_maxima, &temperature}) tensor->append_to(bits);
        weights.append_to(bits);
        if (schedule != 0) {
            if (bits == first_bits) continue;
            std::printf("%sother bits in another run\n", name.c_str());
            return false;
        }
        first_bits = bits;
        for (int band = 0; band < bands; ++band)
            for (int j = 0; j < s.columns; ++j) {
                if (conflicts[std::size_t(band) * words + j / 32] >> j % 32 & 1) continue;
                good &= near(band * 64 + 64 <= s.rows, true, 0, name + "a conflict bit of a band that is not full");
                for (int i = band * 64; i < std::min(band * 64 + 64, s.rows); ++i)
                    good &= near(inputs.allowed(i, j, true) && (!s.both || inputs.allowed(i, j, false)), true, 0,
                                 name + "a missing conflict bit");
            }
        for (int side = 0; side < (s.both ? 2 : 1); ++side)
            for (int i = 0; i < (side ? s.columns : s.rows); ++i) {
                const double log = side ? truth.column_logs[i] : truth.logs[i];
                good &= near(side ? column_logs[i] : row_logs[i], log, 1e-5 + 1e-6 * std::fabs(log), name + "log-sum-exp");
                good &= near(side ? column_maxima[i] : row_maxima[i], side ? truth.column_best[i] : truth.best[i], 0,
                             name + "highest cosine");
            }
        // A weight's exponent has an error of some roundings of 1 / temperature.
        const double relative = half_rounding<Format>() + 4e-7 * s.inverse_temperature + 1e-5;
        for (std::size_t i = 0; i < truth.weights.size(); ++i)
            good &= near(from_bits<Format>(weights[i]), truth.weights[i],
                         relative * truth.sizes[i] + 1e-7, name + "weight");
        for (int i = 0; i < s.rows; ++i) {
            double size = 0;
            for (int j = 0; j < s.columns; ++j) size += truth.sizes[std::size_t(i) * s.columns + j];
            good &= near(temperature[i], truth.temperature[i], (4e-7 * s.inverse_temperature + 1e-5) * size + 1e-4,
                         name + "temperature");
        }
        if (!good) {
            std::printf("  %d x %d, chunks %d x %d, lists %d and %d, groups %d, both %d, 1/t %g\n", s.rows, s.columns,
                        s.chunk_rows, s.chunk_columns, s.row_lists, s.column_lists, s.groups, s.both,
                        double(s.inverse_temperature));
            return false;
        }
    }
    return true;
}

template <class Format>
bool check_pairs(unsigned number) {
    static const int sizes[] = {8, 16, 24, 256, 264, 768, 1024, 1032, 1600};
    std::mt19937 random(number * 2246822519u + 3);
    const int size = sizes[draw(random, 0, int(std::size(sizes)) - 1)], lefts = draw(random, 1, 20),
              rights = draw(random, 1, 20), count = draw(random, 0, 3) ? draw(random, 0, 90) : 0;
    const bool wide = draw(random, 0, 1);
    Memory<std::uint16_t> left(std::size_t(lefts) * size), right(std::size_t(rights) * size);
    Memory<long long> left_rows(count), right_rows(count), order(count), starts(lefts + 1);
    const int num_columns = draw(random, 1, 20);
    Memory<float> gradients(count), upstream(20);
    for (int i = 0; i < 20; ++i) upstream[i] = draw(random, -1.f, 1.f);
    for (Memory<std::uint16_t>* side : {&left, &right})
        for (std::size_t i = 0; i < side->size(); ++i)
            (*side)[i] = to_bits<Format>(draw(random, -1.f, 1.f));
    for (int q = 0; q < count; ++q) {
        left_rows[q] = draw(random, 0, 2) ? draw(random, 0, lefts - 1) : 0;
        right_rows[q] = draw(random, 0, rights - 1);
        gradients[q] = draw(random, -1.f, 1.f);
    }
    int placed = 0;
    for (int row = 0; row <= lefts; ++row) {
        starts[row] = placed;
        for (int q = 0; q < count && row < lefts; ++q)
            if (left_rows[q] == row) order[placed++] = q;
    }
    const auto value = [&](Memory<std::uint16_t>& side, long long row, int d) {
        return from_bits<Format>(side[std::size_t(row) * size + d]);
    };
    int listed = lefts;  // lists may end at the last vector with a score
    while (draw(random, 0, 3) && listed > 0 && starts[listed - 1] == starts[listed]) --listed;
    const std::string name = "case " + std::to_string(number) + " pairs: ";
    std::vector<unsigned char> first_bits;
    for (int schedule : {0, 1, int(number) + 2}) {
        start_run(schedule);
        Memory<float> scores(count), logs(lefts), score_gradients(count), column_logs(num_columns), column_gradients(count),
            wide_gradient(wide ? left.size() : 0);
        Memory<std::uint16_t> narrow_gradient(wide ? 0 : left.size());
        unimo::PairArguments a{};
        a.left = left.get(), a.right = right.get(), a.left_rows = left_rows.get(), a.right_rows = right_rows.get();
        a.scores = scores.get(), a.order = order.get(), a.starts = starts.get(), a.score_gradients = gradients.get();
        a.gradient = wide ? static_cast<void*>(wide_gradient.get()) : narrow_gradient.get();
        a.num_scores = count, a.num_rows = lefts, a.size = size, a.num_listed = listed;
        // The segments of the lists, then the same values as rows: value i belongs to segment i % num_columns.
        unimo::SegmentArguments segments{scores.get(), order.get(), starts.get(), left_rows.get(), logs.get(), upstream.get(),
                                         score_gradients.get(), lefts, count};
        unimo::SegmentArguments columns{scores.get(), nullptr, nullptr, nullptr, column_logs.get(), upstream.get(),
                                        column_gradients.get(), num_columns, count};
        require(unimo_contrastive_pair_scores(&a, kFormatNumber<Format>, nullptr) == 0, "pair scores refused");
        require(unimo_contrastive_pair_gradients(&a, kFormatNumber<Format> + (wide ? 2 : 0), nullptr) == 0, "pair gradients refused");
        for (const auto* each : {&segments, &columns}) {
            require(unimo_contrastive_segments(each, 0, nullptr) == 0, "segments refused");
            require(unimo_contrastive_segment_gradients(each, 0, nullptr) == 0, "segment gradients refused");
        }
        finish_run();
        std::vector<unsigned char> bits;
        scores.append_to(bits), logs.append_to(bits), score_gradients.append_to(bits), column_logs.append_to(bits),
            column_gradients.append_to(bits), wide_gradient.append_to(bits), narrow_gradient.append_to(bits);
        if (schedule != 0) {
            if (bits == first_bits) continue;
            std::printf("%sother bits in another run\n", name.c_str());
            return false;
        }
        first_bits = bits;
        bool good = true;
        for (int q = 0; q < count; ++q) {
            double truth = 0;
            for (int d = 0; d < size; ++d) truth += value(left, left_rows[q], d) * value(right, right_rows[q], d);
            good &= near(scores[q], truth, 1e-6 * size, name + "score");
        }
        for (const bool by_list : {true, false})
            for (int row = 0; row < (by_list ? lefts : num_columns); ++row) {
                double sum = 0;
                const auto belongs = [&](int q) { return by_list ? left_rows[q] == row : q % num_columns == row; };
                for (int q = 0; q < count; ++q)
                    if (belongs(q)) sum += std::exp(double(scores[q]));
                good &= near(by_list ? logs[row] : column_logs[row], sum > 0 ? std::log(sum) : -INFINITY, 1e-4, name + "segment");
                for (int q = 0; q < count; ++q)
                    if (belongs(q))
                        good &= near((by_list ? score_gradients : column_gradients)[q],
                                     upstream[row] * std::exp(double(scores[q])) / sum, 1e-4, name + "segment gradient");
            }
        for (int row = 0; row < lefts; ++row) {
            for (int d = 0; d < size; ++d) {
                double truth = 0;
                for (int q = 0; q < count; ++q)
                    if (left_rows[q] == row) truth += gradients[q] * value(right, right_rows[q], d);
                const std::size_t at = std::size_t(row) * size + d;
                const double found = wide ? wide_gradient[at] : from_bits<Format>(narrow_gradient[at]);
                good &= near(found, truth, (wide ? 0 : half_rounding<Format>()) * std::fabs(truth) + 1e-5, name + "gradient");
            }
        }
        if (!good) return false;
    }
    return true;
}

template <class Format>
bool check(unsigned number) {
    return check_blocks<Format>(number) & check_pairs<Format>(number);
}

}  // namespace

int main(int count, char** words) { return run_cases(count, words, check<unimo::Half>, check<OtherFormat>); }
