// In what order an emulated device does what it may do in any order. A kernel's results must not depend on it.
#pragma once

#include <cstdint>
#include <string>

namespace emulated {

// Which warp goes on when a thread waits, of those that can.
enum class Order { kInTurn, kLowestFirst, kHighestFirst, kRandom };

// When copies and products that a thread does not wait for take place: as soon as they are issued, when nothing else
// can go on (products: when they are waited for), or somewhere between.
enum class Moment { kEarly, kLate, kRandom };

struct Schedule {
  Order order = Order::kInTurn;
  Moment copies = Moment::kEarly;
  Moment products = Moment::kEarly;
  uint32_t seed = 1;
  int multiprocessors = 3;
  int poison = 0xff;  // every byte of a block's shared memory, at first
};

inline constexpr Schedule kSchedules[] = {
    {},
    {Order::kLowestFirst, Moment::kEarly, Moment::kLate, 2, 3, 0xff},
    {Order::kHighestFirst, Moment::kLate, Moment::kEarly, 3, 3, 0x7c},
    {Order::kRandom, Moment::kRandom, Moment::kRandom, 4, 3, 0xff},
    {Order::kHighestFirst, Moment::kLate, Moment::kLate, 5, 3, 0xff},
    {Order::kLowestFirst, Moment::kLate, Moment::kLate, 6, 3, 0x3f},
};

std::string describe(const Schedule& schedule);

// What all launches so far have issued: a test says which way its tiles came.
struct Counts {
  uint64_t boxes = 0, copies = 0, products = 0;
};
Counts& counts();

// Of all launches from here on.
Schedule& present_schedule();

}  // namespace emulated
