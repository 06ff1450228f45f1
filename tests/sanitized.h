// Whether what is tested has a sanitizer, in which everything takes many times as long: a test then
// does less of the same. The build says it: a test of a shared library may have none itself.
#pragma once

namespace tiercel::test {

#if defined(TIERCEL_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// Races are what is looked for.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif

}  // namespace tiercel::test
