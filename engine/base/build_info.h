// What was built.
#pragma once

namespace tiercel {

// The commit of the source tree when this was linked, "-dirty" behind it where files had changed;
// "unknown" without a repository. engine/base/build_info.cmake writes the definition at each build.
const char* source_commit();

}  // namespace tiercel
