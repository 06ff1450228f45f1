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
    if [[ $types == *"|"* && $types != *[[:upper:]]* ]]; then
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

// Before the script for bash.
constexpr const char* kZsh = R"script((( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
autoload -Uz bashcompinit && bashcompinit
)script";

constexpr const char* kFish = R"script(# tiercel completion fish
function __tiercel
  set -l words (commandline -opc)
  if test (count $words) -eq 1
    tiercel --list-commands 2>/dev/null
    return
  end
  set -l flags (tiercel $words[2] --list-flags 2>/dev/null)
  if string match -q -- '-*' $words[-1]
    # Name, type, help: a flag that takes a value says which.
    set -l type (string replace -fr -- "^$words[-1]\t([^\t]+)\t.*" '$1' $flags)
    if string match -qr -- '^[^A-Z]*\|[^A-Z]*$' "$type"
      string split '|' $type
      return
    else if test -n "$type"
      string match -qr 'FILE|DIR' $type; and __fish_complete_path (commandline -ct)
      return
    end
  end
  string replace -r -- '\t[^\t]*\t' '\t' $flags
end
complete -c tiercel -f -a '(__tiercel)'
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
        "  bash        source <(tiercel completion bash)       in ~/.bashrc\n"
        "  zsh         source <(tiercel completion zsh)        in ~/.zshrc\n"
        "  fish        tiercel completion fish | source        in config.fish\n");
  } else if (shell == "--list-flags") {
    print_result("bash\nzsh\nfish\n");
  } else {
    fail(ErrorKind::kUsage, "tiercel completion: expected bash, zsh or fish, found {}",
         argc > 2 ? "more than one of them" : argc > 1 ? "'" + shell + "'" : "nothing");
  }
  return 0;
}

}  // namespace tiercel
