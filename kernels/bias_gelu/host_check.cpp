// Random rows through bias and gelu against fp64, forward and backward.
//
//     host_check FIRST_CASE NUM_CASES
//
// On the CPU (UNIMO_HOST) every case runs under a natural, a reversed and a shuffled schedule of threads, with equal bits;
// compiled by nvcc (`nvcc -x cu`) it runs three times on the GPU, for compute-sanitizer. Outputs start as NaN.
#include "bias_gelu.cu"

#include <iterator>

#include "../common/checking.h"

namespace {

template <class Format>
bool check(unsigned number) {
    static const int edges[] = {8, 16, 248, 256, 264, 1016, 1024, 1032, 2056};
    static const float spreads[] = {0.1f, 1.f, 1.f, 6.f};
    std::mt19937 random(number * 2654435761u + 3);
    const int rows = draw(random, 0, 3) ? draw(random, 1, 13) : draw(random, 0, 40);
    const int columns = edges[draw(random, 0, int(std::size(edges)) - 1)], blocks = draw(random, 1, 4);
    const float spread = spreads[draw(random, 0, 3)];
    const std::size_t count = std::size_t(rows) * columns;
    std::normal_distribution<float> normal(0, 1);
    Memory<std::uint16_t> x(count), gradient(count), bias(columns);
    for (std::size_t i = 0; i < count; ++i) x[i] = to_bits<Format>(normal(random) * spread);
    for (std::size_t i = 0; i < count; ++i) gradient[i] = to_bits<Format>(normal(random));
    for (int i = 0; i < columns; ++i) bias[i] = to_bits<Format>(normal(random) * 0.5f);

    std::vector<unsigned char> first_bytes;
    for (int schedule : {0, 1, int(number) + 2}) {
        Memory<std::uint16_t> result(count), x_gradient(count);
        Memory<float> partials(std::size_t(blocks) * columns);
        unimo::BiasGeluArguments arguments{};
        arguments.x = x.get(), arguments.bias = bias.get(), arguments.result = result.get();
        arguments.gradient = gradient.get(), arguments.x_gradient = x_gradient.get(), arguments.partials = partials.get();
        arguments.num_rows = rows, arguments.num_columns = columns, arguments.num_blocks = blocks;
        start_run(schedule);
        require(unimo_bias_gelu_forward(&arguments, kFormatNumber<Format>, nullptr) == 0, "forward refused");
        require(unimo_bias_gelu_backward(&arguments, kFormatNumber<Format>, nullptr) == 0, "backward refused");
        finish_run();
        std::vector<unsigned char> bytes;
        result.append_to(bytes), x_gradient.append_to(bytes), partials.append_to(bytes);
        if (schedule) {
            if (bytes == first_bytes) continue;
            std::printf("case %u: schedule %d gives other bits\n", number, schedule);
            return false;
        }
        first_bytes = bytes;
        const std::string name = "case " + std::to_string(number) + " ";
        std::vector<double> bias_gradient(columns), magnitude(columns);
        const double rounding = half_rounding<Format>(), smallest = 1e-7;  // of fp16's subnormal numbers
        bool good = true;
        for (std::size_t i = 0; i < count; ++i) {
            const double z = from_bits<Format>(x[i]) + from_bits<Format>(bias[i % columns]);
            const double distribution = 0.5 * std::erfc(-z / std::sqrt(2.0));
            const double density = std::exp(-z * z / 2) / std::sqrt(2 * std::acos(-1.0));
            const double value = z * distribution, slope = from_bits<Format>(gradient[i]) * (distribution + z * density);
            good &= near(from_bits<Format>(result[i]), value, 1.01 * rounding * std::fabs(value) + smallest, name + "result");
            // The slope crosses zero where its two terms cancel.
            const double terms = std::fabs(from_bits<Format>(gradient[i])) * (distribution + std::fabs(z) * density);
            good &= near(from_bits<Format>(x_gradient[i]), slope, 1.01 * rounding * std::fabs(slope) + 1e-6 * terms + smallest,
                         name + "gradient");
            bias_gradient[i % columns] += slope;
            magnitude[i % columns] += terms;
        }
        for (int c = 0; c < columns; ++c) {
            double found = 0;
            for (int b = 0; b < blocks; ++b) found += partials[std::size_t(b) * columns + c];
            good &= near(found, bias_gradient[c], 2e-6 * magnitude[c] + 1e-12, name + "gradient of the bias");
        }
        if (!good) return false;
    }
    return true;
}

}  // namespace

int main(int count, char** words) { return run_cases(count, words, check<unimo::Half>, check<OtherFormat>); }
