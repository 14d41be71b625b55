// Random rows of logits through cross-entropy against fp64, forward and backward.
//
//     host_check FIRST_CASE NUM_CASES
//
// On the CPU (UNIMO_HOST) every case runs under a natural, a reversed and a shuffled schedule of threads, with equal bits;
// compiled by nvcc (`nvcc -x cu`) it runs three times on the GPU, for compute-sanitizer. Outputs start as NaN, and so do the
// logits beyond the last word.
#include "cross_entropy.cu"

#include <iterator>

#include "../common/checking.h"

namespace {

enum Kind { kOrdinary, kHuge, kEqual, kMasked, kCertain, kNumKinds };  // equal: several are the highest; masked: biases of -inf

constexpr int kEdges[] = {1, 2, 7, 8, 9, 255, 256, 257, 1031, 2047, 2048, 2050, 4104, 9001};

template <class Format>
struct Problem {
    int kind, rows, words, pitch, blocks, slabs;
    float smoothing;
    bool tells_correct;
    Memory<std::uint16_t> logits, bias;
    Memory<long long> targets;
    Memory<float> gradients;

    explicit Problem(std::mt19937& random)
        : kind(draw(random, 0, kNumKinds - 1)),
          rows(draw(random, 0, 5) ? draw(random, 1, 9) : draw(random, 0, 17)),
          words(kEdges[draw(random, 0, int(std::size(kEdges)) - 1)]),
          pitch((words + 7) / 8 * 8 + 8 * draw(random, 0, 1)),
          blocks(draw(random, 1, 3)),
          slabs((words + unimo::kEntropySlab - 1) / unimo::kEntropySlab),
          smoothing(kind != kMasked && draw(random, 0, 1) ? 0.1f : 0.f),  // masked words would make every smoothed loss infinite
          tells_correct(draw(random, 0, 1) == 1),
          logits(std::size_t(rows) * pitch),
          bias(words),
          targets(rows),
          gradients(rows) {
        const float spread = kind == kHuge ? 12000.f : kind == kEqual ? 0.f : kind == kCertain ? 0.5f : 3.f;
        std::normal_distribution<float> normal(0, 1);
        for (int word = 0; word < words; ++word) bias[word] = to_bits<Format>(kind == kEqual ? 1.f : normal(random));
        for (int row = 0; row < rows; ++row) {
            for (int word = 0; word < words; ++word)
                logits[at(row, word)] = to_bits<Format>(2.f + std::fmax(-5.f, std::fmin(5.f, normal(random))) * spread);
            targets[row] = draw(random, 0, 3) ? draw(random, 0, words - 1) : draw(random, 0, 1) ? words - 1 : 0;
            if (kind == kCertain) logits[at(row, int(targets[row]))] = to_bits<Format>(20.f);
            gradients[row] = normal(random);
        }
        if (kind != kMasked) return;
        for (int word = 0; word < words; ++word) {
            bool is_wanted = false;
            for (int row = 0; row < rows; ++row) is_wanted |= targets[row] == word;
            if (!is_wanted && draw(random, 0, 1)) bias[word] = to_bits<Format>(-HUGE_VALF);
        }
    }
    std::size_t at(int row, int word) const { return std::size_t(row) * pitch + word; }
    float logit(int row, int word) {
        return float(from_bits<Format>(logits[at(row, word)])) + float(from_bits<Format>(bias[word]));
    }
};

template <class Format>
struct Results {
    Memory<std::uint16_t> slopes;
    Memory<unimo::RowPart> parts;
    Memory<unimo::RowFacts> facts;
    Memory<float> losses, partials;
    Memory<unsigned char> is_correct;

    explicit Results(Problem<Format>& p)
        : slopes(p.logits.size()), parts(std::size_t(p.slabs) * p.rows), facts(p.rows), losses(p.rows),
          partials(std::size_t(p.blocks) * p.pitch), is_correct(p.rows) {
        for (std::size_t i = 0; i < slopes.size(); ++i) slopes[i] = p.logits[i];
    }
};

template <class Format>
bool is_right(Problem<Format>& p, Results<Format>& found, const std::string& name) {
    std::vector<double> bias_gradient(p.words), magnitude(p.words);
    const double rounding = 1.01 * half_rounding<Format>(), smallest = 1e-7;  // of fp16's subnormal numbers
    bool good = true;
    for (int row = 0; row < p.rows; ++row) {
        const int target = int(p.targets[row]);
        double maximum = -HUGE_VAL, others = 0, sum = 0, logits = 0;
        int best = 0;
        for (int word = 0; word < p.words; ++word) {
            if (p.logit(row, word) > p.logit(row, best)) best = word;
            maximum = std::fmax(maximum, p.logit(row, word));
            logits += p.logit(row, word);
        }
        for (int word = 0; word < p.words; ++word) {
            sum += std::exp(p.logit(row, word) - maximum);
            if (word != target) others += std::exp(double(p.logit(row, word)) - p.logit(row, target));
        }
        const double log_sum = maximum + std::log(sum);
        const double surprise = others < 1 ? std::log1p(others) : log_sum - p.logit(row, target);
        const double smoothed = p.smoothing > 0 ? p.smoothing * (log_sum - logits / p.words) : 0;
        const double loss = (1 - p.smoothing) * surprise + smoothed;
        const double of_sum = p.smoothing > 0 ? 2e-7 * p.smoothing * std::fabs(logits) : 0;
        good &= near(found.losses[row], loss, 2e-6 * (1 + std::fabs(loss)) + of_sum, name + "loss");
        if (p.tells_correct && bool(found.is_correct[row]) != (best == target)) {
            std::printf("%scorrect: %d, target %d, best %d\n", name.c_str(), found.is_correct[row], target, best);
            good = false;
        }
        for (int word = 0; word < p.words; ++word) {
            const double probability = std::exp(p.logit(row, word) - log_sum), share = double(p.smoothing) / p.words;
            const double slope = word == target ? std::expm1(-surprise) + p.smoothing - share : probability - share;
            const double terms = 1e-5 * (probability * (word != target) + share) + 1e-6 * (word == target) * (std::fabs(slope) + 1);  // a sum near 1
            good &= near(from_bits<Format>(found.slopes[p.at(row, word)]), slope,
                         rounding * std::fabs(slope) + terms + smallest, name + "slope");
            bias_gradient[word] += slope * p.gradients[row];
            magnitude[word] += std::fabs(p.gradients[row]) * (std::fabs(slope) * 2e-6 + terms);
        }
    }
    for (int word = 0; word < p.words; ++word) {
        double total = 0;
        for (int block = 0; block < p.blocks; ++block) total += found.partials[std::size_t(block) * p.pitch + word];
        good &= near(total, bias_gradient[word], magnitude[word] + 1e-12, name + "gradient of the bias");
    }
    return good;
}

template <class Format>
bool check(unsigned number) {
    std::mt19937 random(number * 2654435761u + 7);
    Problem<Format> p(random);
    std::vector<unsigned char> first_bytes;
    for (int schedule : {0, 1, int(number) + 2}) {
        Results<Format> found(p);
        unimo::CrossEntropyArguments a{};
        a.logits = found.slopes.get(), a.bias = p.bias.get(), a.targets = p.targets.get();
        a.parts = found.parts.get(), a.facts = found.facts.get(), a.losses = found.losses.get();
        a.is_correct = p.tells_correct ? found.is_correct.get() : nullptr;
        a.gradients = p.gradients.get(), a.partials = found.partials.get();
        a.num_rows = p.rows, a.num_words = p.words, a.pitch = p.pitch;
        a.num_slabs = p.slabs, a.num_blocks = p.blocks, a.smoothing = p.smoothing;
        start_run(schedule);
        require(unimo_cross_entropy_losses(&a, kFormatNumber<Format>, nullptr) == 0, "forward refused");
        require(unimo_cross_entropy_slopes(&a, kFormatNumber<Format>, nullptr) == 0, "backward refused");
        finish_run();
        std::vector<unsigned char> bytes;
        found.slopes.append_to(bytes), found.facts.append_to(bytes), found.losses.append_to(bytes);
        found.partials.append_to(bytes), found.is_correct.append_to(bytes);
        if (schedule) {
            if (bytes == first_bytes) continue;
            std::printf("case %u: schedule %d gives other bits\n", number, schedule);
            return false;
        }
        first_bytes = bytes;
        if (!is_right(p, found, "case " + std::to_string(number) + " ")) return false;
    }
    return true;
}

}  // namespace

int main(int count, char** words) { return run_cases(count, words, check<unimo::Half>, check<OtherFormat>); }
