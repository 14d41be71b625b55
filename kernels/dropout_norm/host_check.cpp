// Random rows through dropout, residual and layer norm against fp64, forward and backward.
//
//     host_check FIRST_CASE NUM_CASES
//
// On the CPU (UNIMO_HOST) every case runs under a natural, a reversed and a shuffled schedule of threads, with equal bits;
// compiled by nvcc (`nvcc -x cu`) it runs three times on the GPU, for compute-sanitizer. Outputs start as NaN.
#include "dropout_norm.cu"

#include <iterator>

#include "../common/checking.h"

namespace {

// The dropout bits again (unimo_ds/utils/seed.py): those of the kernels are device functions.
unsigned mixed(unsigned x) {
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return x ^ x >> 16;
}
// What is compared with the threshold.
int dropout_value(unsigned row_key, int column) {
    const unsigned word = mixed(row_key + unsigned(column / 2) * 0x27D4EB2Fu);
    return column % 2 ? int(word) >> 16 : int(std::int16_t(word & 0xffff));
}

template <class Format>
bool check(unsigned number) {
    static const int edges[] = {8, 16, 248, 256, 264, 512, 520, 768, 1016, 1024};
    static const double probabilities[] = {0, 0.1, 0.1, 0.5};
    std::mt19937 random(number * 2654435761u + 5);
    const int rows = draw(random, 0, 3) ? draw(random, 1, 9) : draw(random, 0, 30);
    const int columns = edges[draw(random, 0, int(std::size(edges)) - 1)], blocks = draw(random, 1, 3);
    const double probability = probabilities[draw(random, 0, 3)];
    const int dropped = int(std::lround(probability * 65536)), threshold = dropped - 32768;
    const double keep_scale = 65536.0 / (65536 - dropped), epsilon = 1e-5;
    const unsigned site_key = unsigned(draw(random, 1, 100)) * 0x9E3779B9u;
    const std::size_t count = std::size_t(rows) * columns;
    std::normal_distribution<float> normal(0, 1);
    Memory<std::uint16_t> x(count), residual(count), gradient(count), weight(columns), bias(columns);
    for (Memory<std::uint16_t>* tensor : {&x, &residual, &gradient, &weight, &bias})
        for (std::size_t i = 0; i < tensor->size(); ++i) (*tensor)[i] = to_bits<Format>(normal(random));
    Memory<unsigned> keys(rows);
    for (int i = 0; i < rows; ++i) keys[i] = unsigned(random());

    std::vector<unsigned char> first_bytes;
    for (int schedule : {0, 1, int(number) + 2}) {
        Memory<std::uint16_t> sum(count), result(count), x_gradient(count), residual_gradient(count), alone(count);
        Memory<float> means(rows), inverse_deviations(rows), partials(std::size_t(blocks) * 2 * columns);
        unimo::DropoutNormArguments a{};
        a.x = x.get(), a.residual = residual.get(), a.weight = weight.get(), a.bias = bias.get();
        a.position_keys = probability > 0 ? keys.get() : nullptr;
        a.sum = sum.get(), a.result = result.get(), a.means = means.get(), a.inverse_deviations = inverse_deviations.get();
        a.gradient = gradient.get(), a.x_gradient = x_gradient.get(), a.residual_gradient = residual_gradient.get();
        a.partials = partials.get();
        a.num_rows = rows, a.num_columns = columns, a.num_blocks = blocks;
        a.dropout_threshold = threshold, a.site_key = site_key;
        a.keep_scale = float(keep_scale), a.epsilon = float(epsilon);
        unimo::DropoutNormArguments of_alone = a;
        of_alone.position_keys = keys.get(), of_alone.result = alone.get();
        start_run(schedule);
        require(unimo_dropout(&of_alone, kFormatNumber<Format>, nullptr) == 0, "dropout refused");
        require(unimo_dropout_norm_forward(&a, kFormatNumber<Format>, nullptr) == 0, "forward refused");
        require(unimo_dropout_norm_backward(&a, kFormatNumber<Format>, nullptr) == 0, "backward refused");
        finish_run();
        std::vector<unsigned char> bytes;
        alone.append_to(bytes), sum.append_to(bytes), result.append_to(bytes), residual_gradient.append_to(bytes), partials.append_to(bytes);
        if (probability > 0) x_gradient.append_to(bytes);  // otherwise it is the residual's, and not written
        if (schedule) {
            if (bytes == first_bytes) continue;
            std::printf("case %u: schedule %d gives other bits\n", number, schedule);
            return false;
        }
        first_bytes = bytes;
        const std::string name = "case " + std::to_string(number) + " ";
        const double rounding = 1.01 * half_rounding<Format>();
        std::vector<double> of_weight(columns), of_bias(columns), size_of_weight(columns), size_of_bias(columns);
        bool good = true;
        for (int row = 0; row < rows; ++row) {
            const std::size_t start = std::size_t(row) * columns;
            const unsigned key = mixed(keys[row] + site_key);
            std::vector<double> keep(columns), normed(columns), slope(columns);
            double mean = 0, squares = 0, slope_mean = 0, product_mean = 0;
            for (int c = 0; c < columns; ++c) {
                keep[c] = dropout_value(key, c) >= threshold ? keep_scale : 0;
                const double total = from_bits<Format>(residual[start + c]) + keep[c] * from_bits<Format>(x[start + c]);
                const double found = from_bits<Format>(sum[start + c]), single = keep[c] * from_bits<Format>(x[start + c]);
                good &= near(from_bits<Format>(alone[start + c]), single, rounding * std::fabs(single), name + "dropout alone");
                good &= near(found, total, rounding * std::fabs(total) + 1e-6, name + "sum");
                mean += found / columns;  // the norm is of the rounded sum
            }
            for (int c = 0; c < columns; ++c) squares += std::pow(from_bits<Format>(sum[start + c]) - mean, 2) / columns;
            const double inverse = 1 / std::sqrt(squares + epsilon);
            for (int c = 0; c < columns; ++c) {
                normed[c] = (from_bits<Format>(sum[start + c]) - mean) * inverse;
                const double up = from_bits<Format>(gradient[start + c]), w = from_bits<Format>(weight[c]);
                const double value = normed[c] * w + from_bits<Format>(bias[c]);
                good &= near(from_bits<Format>(result[start + c]), value, rounding * std::fabs(value) + 1e-5, name + "result");
                of_weight[c] += up * normed[c], size_of_weight[c] += std::fabs(up * normed[c]);
                of_bias[c] += up, size_of_bias[c] += std::fabs(up);
                slope[c] = up * w;
                slope_mean += slope[c] / columns;
                product_mean += slope[c] * normed[c] / columns;
            }
            for (int c = 0; c < columns; ++c) {
                const double truth = (slope[c] - slope_mean - normed[c] * product_mean) * inverse;
                const double tolerance = 1e-5 * (1 + std::fabs(slope[c]) * inverse);
                good &= near(from_bits<Format>(residual_gradient[start + c]), truth, rounding * std::fabs(truth) + tolerance,
                             name + "gradient of the residual");
                if (probability > 0)
                    good &= near(from_bits<Format>(x_gradient[start + c]), keep[c] * truth,
                                 rounding * std::fabs(keep[c] * truth) + keep[c] * tolerance, name + "gradient of x");
            }
        }
        for (int c = 0; c < columns; ++c) {
            double weights = 0, biases = 0;
            for (int b = 0; b < blocks; ++b) {
                weights += partials[std::size_t(b) * 2 * columns + c];
                biases += partials[(std::size_t(b) * 2 + 1) * columns + c];
            }
            good &= near(weights, of_weight[c], 1e-5 * size_of_weight[c] + 1e-6, name + "gradient of the weight");
            good &= near(biases, of_bias[c], 1e-6 * size_of_bias[c] + 1e-7, name + "gradient of the bias");
        }
        if (!good) return false;
    }
    return true;
}

}  // namespace

int main(int count, char** words) { return run_cases(count, words, check<unimo::Half>, check<OtherFormat>); }
