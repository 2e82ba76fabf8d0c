#pragma once

#include <numbers>

#define CUDART_L2E_F std::numbers::log2e_v<float>
#define CUDART_LN2_F std::numbers::ln2_v<float>
