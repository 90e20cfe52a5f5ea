#pragma once

namespace troupe {

// Functions of the C library differ in the last bit from one processor to another (it picks code with or without fma);
// what decides a weight's bits uses these, plain double arithmetic in a fixed order. Pure; any thread.

/// e^x; relative error below 1e-15. x within +-700 (else the result is clamped to that range's ends).
double exact_exp(double x) noexcept;
/// cos(pi x) for x in [0, 1]; absolute error below 1e-15.
double exact_cos_pi(double x) noexcept;
/// base^exponent, exponent >= 0.
double exact_pow(double base, long long exponent) noexcept;

} // namespace troupe
