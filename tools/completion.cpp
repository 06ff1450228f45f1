// tiercel completion: what a shell needs to complete commands, flags and the values of flags that have a
// few. The scripts ask the command itself (--list-flags), so they never fall behind it.
#include <string>

#include "engine/base/check.h"
#include "tools/commands.h"
#include "tools/console.h"

namespace tiercel {
namespace {

constexpr const char* kBash = R"script(# tiercel completion bash
_tiercel() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "$(tiercel --list-commands 2>/dev/null)" -- "$word"))
    return
  fi
  local flags types
  flags=$(tiercel "$command" --list-flags 2>/dev/null) || return
  if [[ $before == -* ]]; then
    # Name, type: a flag that takes a value says which.
    types=$(awk -F'\t' -v flag="$before" '$1 == flag { print $2 }' <<<"$flags")
    if [[ $types == *"|"* && $types != N* ]]; then
      COMPREPLY=($(compgen -W "${types//|/ }" -- "$word"))
      return
    elif [[ -n $types ]]; then
      COMPREPLY=($(compgen -f -- "$word"))
      return
    fi
  fi
  COMPREPLY=($(compgen -W "$(cut -f1 <<<"$flags")" -- "$word"))
}
complete -o filenames -o bashdefault -F _tiercel tiercel
)script";

constexpr const char* kZsh = "autoload -U +X bashcompinit && bashcompinit\n";

constexpr const char* kFish = R"script(# tiercel completion fish
function __tiercel_flags
  set -l words (commandline -opc)
  test (count $words) -ge 2; and tiercel $words[2] --list-flags 2>/dev/null | while read -l -d \t name type help
    printf '%s\t%s\n' $name $help
  end
end
complete -c tiercel -n 'test (count (commandline -opc)) -eq 1' -f -a '(tiercel --list-commands 2>/dev/null)'
complete -c tiercel -n 'test (count (commandline -opc)) -ge 2' -a '(__tiercel_flags)'
)script";

}  // namespace

int command_completion(int argc, char** argv) {
  const std::string shell = argc == 2 ? argv[1] : "";
  if (shell == "bash") {
    print_result(kBash);
  } else if (shell == "zsh") {
    print_result(std::string(kZsh) + kBash);
  } else if (shell == "fish") {
    print_result(kFish);
  } else if (shell == "--help" || shell == "-h") {
    print_result(
        "Completion of commands and flags in a shell.\n\n"
        "usage: tiercel completion bash|zsh|fish\n\n"
        "  bash, zsh   source <(tiercel completion bash)       in ~/.bashrc or ~/.zshrc\n"
        "  fish        tiercel completion fish | source        in config.fish\n");
  } else if (shell != "--list-flags") {
    fail(ErrorKind::kUsage, "tiercel completion: expected bash, zsh or fish, found {}",
         argc > 1 ? "'" + shell + "'" : "nothing");
  }
  return 0;
}

}  // namespace tiercel
