#include "sharing.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <tuple>
#include <unordered_map>

namespace fourlane::flow_level {

namespace {

constexpr double kLeastLeft = 0.5;  // of a link: tiny packets have as many bytes acknowledged as sent
constexpr double kAlike = 1e-9;  // levels that differ by less are one
constexpr double kNothing = 1e-9;  // of what was wanted at first: no flow, only what rounding left

// Rows from pairs of row and value, in the order of the pairs: `each` calls back with every pair, and is called twice.
template <typename Each>
Rows<std::uint32_t> rows_of(std::size_t rows, const Each& each) {
    Rows<std::uint32_t> made;
    made.first.assign(rows + 1, 0);
    each([&](std::uint32_t row, std::uint32_t) { ++made.first[row + 1]; });
    for (std::size_t row = 0; row < rows; ++row) made.first[row + 1] += made.first[row];
    made.values.resize(made.first[rows]);
    std::vector<std::uint32_t> next(made.first.begin(), made.first.end() - 1);
    each([&](std::uint32_t row, std::uint32_t value) { made.values[next[row]++] = value; });
    return made;
}

}  // namespace

Sharing::Sharing(const Network& network)
    : net_(network), queues_(static_cast<std::uint32_t>(network.scenario().queue_weight.size())) {
    for (std::uint32_t q = 0; q < queues_; ++q) {
        const std::int64_t cap = net_.scenario().queue_cap_q16[q];
        if (net_.scenario().queue_weight[q] == 0) strict_ |= 1U << q;
        most_.push_back(cap == 0 ? 1.0 : 65536.0 / static_cast<double>(cap));
    }
    spreads_ = net_.spreads;
    index();
    rate_.assign(net_.flows(), 0.0);
    bottleneck_.assign(net_.flows(), kNone);
    open_.assign(net_.flows(), 0);
    frozen_weight_.assign(bundle_spread_.size(), 0.0);
    frozen_rate_.assign(bundle_spread_.size(), 0.0);
    frozen_bound_.assign(bundle_spread_.size(), 0.0);
    for (std::size_t f = 0; f < net_.flows() && net_.any_adaptive(); ++f) {
        mixed_ = mixed_ || (bundle_[f] == kNone && net_.own[f].size() > Network::kLeastLinks);
    }
}

void Sharing::index() {
    const auto flows = static_cast<std::uint32_t>(net_.flows());
    std::unordered_map<std::uint64_t, std::uint32_t> known;
    bundle_.assign(flows, kNone);
    for (std::uint32_t f = 0; f < flows; ++f) {
        if (net_.spread[f] == kNone) continue;
        const std::uint64_t key = std::uint64_t{net_.spread[f]} * queues_ + net_.queue[f];
        const auto [at, fresh] = known.try_emplace(key, static_cast<std::uint32_t>(bundle_spread_.size()));
        bundle_[f] = at->second;
        if (!fresh) continue;
        bundle_spread_.push_back(net_.spread[f]);
        bundle_queue_.push_back(net_.queue[f]);
    }
    const std::size_t places = net_.links() * queues_;
    flows_of_place_ = rows_of(places, [&](const auto& tell) {
        for (std::uint32_t f = 0; f < flows; ++f) {
            const auto links = net_.own[f];
            for (std::size_t i = 0; i + Network::kAckLinks < links.size(); ++i) tell(place_of(links[i], net_.queue[f]), f);
        }
    });
    flows_of_bundle_ = rows_of(bundle_spread_.size(), [&](const auto& tell) {
        for (std::uint32_t f = 0; f < flows; ++f) {
            if (bundle_[f] != kNone) tell(bundle_[f], f);
        }
    });
    bundles_of_place_ = rows_of(places, [&](const auto& tell) {
        for (std::uint32_t b = 0; b < bundle_spread_.size(); ++b) {
            for (const Part& part : spreads_[bundle_spread_[b]]) tell(place_of(part.link, bundle_queue_[b]), b);
        }
    });
}

void Sharing::settle(std::span<const std::uint32_t> under_way) {
    const bool anew = std::ranges::any_of(under_way, [this](std::uint32_t f) { return rate_[f] == 0; });
    for (int pass = anew ? 0 : 1; pass < 2; ++pass) {
        acknowledge();
        if (mixed_) go_round(under_way);
        settle_once(under_way);
    }
}

// Take off links what acknowledgements need at the present rates.
void Sharing::acknowledge() {
    left_ = net_.capacity;
    for (std::uint32_t f = 0; f < net_.flows(); ++f) {
        if (rate_[f] == 0) continue;
        const auto links = net_.own[f];
        for (std::size_t i = links.size() - Network::kAckLinks; i < links.size(); ++i) {
            left_[links[i]] -= rate_[f] * net_.ack_use[f];
        }
    }
    for (std::size_t link = 0; link < left_.size(); ++link) {
        left_[link] = std::max(left_[link], kLeastLeft * net_.capacity[link]);
    }
}

// Let flows that are routed adaptively leave alone what flows with paths of their own take.
void Sharing::go_round(std::span<const std::uint32_t> under_way) {
    std::vector<std::uint32_t> fixed;
    for (const std::uint32_t f : under_way) {
        if (bundle_[f] == kNone) fixed.push_back(f);
    }
    settle_once(fixed);
    const std::vector<double> load_of = load(rate_, false);
    std::vector<double> taken(net_.ports(), 0.0);
    for (std::size_t place = 0; place < net_.ports() * queues_; ++place) taken[place / queues_] += load_of[place];
    std::vector<float> shares;
    for (std::uint32_t s = 0; s < spreads_.size(); ++s) {
        net_.respread(s, taken, shares);
        for (std::size_t i = 0; i < shares.size(); ++i) spreads_.values[spreads_.first[s] + i].share = shares[i];
    }
}

void Sharing::settle_once(std::span<const std::uint32_t> under_way) {
    const std::uint32_t weighted = ~strict_ & ((1U << queues_) - 1);
    start(under_way);
    for (std::uint32_t left = strict_; left != 0;) {
        const auto highest = static_cast<std::uint32_t>(std::bit_width(left)) - 1;
        fill(1U << highest);
        left &= ~(1U << highest);
    }
    bound_.clear();
    if (several_weighted()) bound();
    fill(weighted);
}

// Find what flows of weighted queues can use at the most: their rates if each queue were alone.
void Sharing::bound() {
    const auto used = used_, demand = demand_, rate = rate_;
    const auto bottleneck = bottleneck_;
    const auto open = open_;
    alone_ = true;
    fill(~strict_ & ((1U << queues_) - 1));
    alone_ = false;
    most_rate_ = rate_;
    bound_ = load(most_rate_, false);
    std::tie(used_, demand_, rate_, bottleneck_, open_) = std::tie(used, demand, rate, bottleneck, open);
}

bool Sharing::several_weighted() const {
    std::uint32_t seen = 0;
    for (std::size_t f = 0; f < open_.size(); ++f) {
        if (open_[f] != 0) seen |= 1U << net_.queue[f];
    }
    return std::popcount(seen & ~strict_) > 1;
}

void Sharing::start(std::span<const std::uint32_t> under_way) {
    used_.assign(net_.links() * queues_, 0.0);
    std::ranges::fill(rate_, 0.0);
    std::ranges::fill(bottleneck_, kNone);
    std::ranges::fill(open_, std::uint8_t{0});
    weigh(under_way);
    for (const std::uint32_t f : under_way) open_[f] = 1;
    demand_ = load(weight_, false);
    wanted_ = demand_;
}

// What a flow sends where nothing but its host's port holds it back: in a queue, which serves what comes first, flows
// share by what arrives.
void Sharing::weigh(std::span<const std::uint32_t> under_way) {
    std::vector<double> count(net_.ports() * queues_, 0.0);
    const auto source = [this](std::uint32_t f) { return place_of(net_.own[f].front(), net_.queue[f]); };
    for (const std::uint32_t f : under_way) count[source(f)] += 1;
    weight_.assign(net_.flows(), 0.0);
    for (const std::uint32_t f : under_way) {
        const std::uint32_t port = net_.own[f].front();
        double weights = 0;
        for (std::uint32_t q = 0; q < queues_; ++q) {
            if (count[place_of(port, q)] > 0) weights += weight_of(q);
        }
        weight_[f] = net_.capacity[port] * weight_of(net_.queue[f]) / weights / count[source(f)];
    }
}

double Sharing::weight_of(std::uint32_t queue) const {
    return (strict_ >> queue & 1) != 0 ? 1.0 : static_cast<double>(net_.scenario().queue_weight[queue]);
}

bool Sharing::wanting(std::uint32_t place) const { return demand_[place] > kNothing * wanted_[place]; }

std::vector<double> Sharing::load(std::span<const double> amount, bool with_acks) const {
    std::vector<double> to(net_.links() * queues_, 0.0), of_bundle(bundle_spread_.size(), 0.0);
    for (std::uint32_t f = 0; f < net_.flows(); ++f) {
        if (amount[f] == 0) continue;
        const auto links = net_.own[f];
        const std::size_t counted = links.size() - (with_acks ? 0 : Network::kAckLinks);
        for (std::size_t i = 0; i < counted; ++i) {
            to[place_of(links[i], net_.queue[f])] += amount[f] * net_.use(f, i, links.size());
        }
        if (bundle_[f] != kNone) of_bundle[bundle_[f]] += amount[f];
    }
    for (std::size_t b = 0; b < of_bundle.size(); ++b) {
        if (of_bundle[b] == 0) continue;
        for (const Part& part : spreads_[bundle_spread_[b]]) {
            to[place_of(part.link, bundle_queue_[b])] += of_bundle[b] * static_cast<double>(part.share);
        }
    }
    return to;
}

// Hold flows down, the tightest place first, in places of these queues.
void Sharing::fill(std::uint32_t queues) {
    std::vector<Candidate> first;
    for (std::uint32_t place = 0; place < demand_.size(); ++place) {
        if (demand_[place] > 0 && (queues >> (place % queues_) & 1) != 0) first.push_back({level(place), place});
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> tightest(std::greater<>{}, std::move(first));
    while (!tightest.empty()) {
        const Candidate next = tightest.top();
        tightest.pop();
        if (!touched_.empty() && !bundles_of_place_[next.place].empty()) flush();
        if (!wanting(next.place)) continue;
        const double now = level(next.place);
        if (now > next.level * (1 + kAlike) && !tightest.empty() && now > tightest.top().level) {
            tightest.push({now, next.place});
        } else {
            freeze(next.place, now);
        }
    }
    flush();
}

void Sharing::freeze(std::uint32_t place, double level) {
    const std::uint32_t link = place / queues_;
    for (const std::uint32_t f : flows_of_place_[place]) {
        if (open_[f] != 0) freeze_flow(f, link, level);
    }
    for (const std::uint32_t b : bundles_of_place_[place]) {
        for (const std::uint32_t f : flows_of_bundle_[b]) {
            if (open_[f] != 0) freeze_flow(f, link, level);
        }
    }
    demand_[place] = 0;
}

void Sharing::freeze_flow(std::uint32_t flow, std::uint32_t link, double level) {
    const double rate = level * weight_[flow];
    open_[flow] = 0;
    rate_[flow] = rate;
    bottleneck_[flow] = link;
    const auto links = net_.own[flow];
    for (std::size_t i = 0; i + Network::kAckLinks < links.size(); ++i) {
        const std::uint32_t place = place_of(links[i], net_.queue[flow]);
        const double use = net_.use(flow, i, links.size());
        demand_[place] -= use * weight_[flow];
        used_[place] += use * rate;
        if (!bound_.empty()) bound_[place] -= use * (most_rate_[flow] - rate);
    }
    const std::uint32_t b = bundle_[flow];
    if (b == kNone) return;
    if (frozen_weight_[b] == 0) touched_.push_back(b);
    frozen_weight_[b] += weight_[flow];
    frozen_rate_[b] += rate;
    if (!bound_.empty()) frozen_bound_[b] += most_rate_[flow] - rate;
}

// Tell links what has been held down of the flows that are spread over them.
void Sharing::flush() {
    for (const std::uint32_t b : touched_) {
        for (const Part& part : spreads_[bundle_spread_[b]]) {
            const std::uint32_t place = place_of(part.link, bundle_queue_[b]);
            demand_[place] -= frozen_weight_[b] * static_cast<double>(part.share);
            used_[place] += frozen_rate_[b] * static_cast<double>(part.share);
            if (!bound_.empty()) bound_[place] -= frozen_bound_[b] * static_cast<double>(part.share);
        }
        frozen_weight_[b] = frozen_rate_[b] = frozen_bound_[b] = 0;
    }
    touched_.clear();
}

double Sharing::level(std::uint32_t place) const {
    const double room = granted(place / queues_, place % queues_) - used_[place];
    return std::max(0.0, room) / demand_[place];
}

// What a queue of a link may send in all, its flows wanting more than that.
double Sharing::granted(std::uint32_t link, std::uint32_t queue) const {
    const double most = most_[queue] * net_.capacity[link];
    const bool strict = (strict_ >> queue & 1) != 0;
    double left = left_[link];
    for (std::uint32_t q = 0; q < queues_; ++q) {
        if ((strict_ >> q & 1) != 0 && q != queue && (!strict || q > queue)) left -= used_[place_of(link, q)];
    }
    return strict ? std::min(most, left) : weighted(link, queue, left);
}

// The same of a weighted queue: by weight among those that want more, up to what each may and can use.
double Sharing::weighted(std::uint32_t link, std::uint32_t queue, double left) const {
    if (alone_) return std::min(left, limit(link, queue));
    std::uint32_t among = 0;
    for (std::uint32_t q = 0; q < queues_; ++q) {
        if ((strict_ >> q & 1) != 0) continue;
        if (q == queue || wanting(place_of(link, q))) {
            among |= 1U << q;
        } else {
            left -= used_[place_of(link, q)];
        }
    }
    while (true) {
        double weights = 0;
        for (std::uint32_t q = 0; q < queues_; ++q) {
            if ((among >> q & 1) != 0) weights += static_cast<double>(net_.scenario().queue_weight[q]);
        }
        const double unit = std::max(0.0, left) / weights;
        std::uint32_t sated = 0;
        double theirs = 0;
        for (std::uint32_t q = 0; q < queues_; ++q) {
            if ((among >> q & 1) == 0) continue;
            double most = limit(link, q);
            if (q != queue && !bound_.empty()) most = std::min(most, std::max(0.0, bound_[place_of(link, q)]));
            if (unit * static_cast<double>(net_.scenario().queue_weight[q]) <= most) continue;
            if (q == queue) return most;
            sated |= 1U << q;
            theirs += most;
        }
        if (sated == 0) return unit * static_cast<double>(net_.scenario().queue_weight[queue]);
        among &= ~sated;
        left -= theirs;
    }
}

double Sharing::limit(std::uint32_t link, std::uint32_t queue) const { return most_[queue] * net_.capacity[link]; }

}  // namespace fourlane::flow_level
