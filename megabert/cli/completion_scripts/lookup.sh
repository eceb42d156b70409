_megabert_table() {
    case "$1" in
    TABLE
    esac
}

# Print the words of the first context that has any: the command with one of its words, with any argument, alone.
_megabert_words() {
    local command="$1" word found arguments=0
    shift
    for word in "$@"; do
        case "$word" in -* | *=*) continue ;; esac
        arguments=1
        found="$(_megabert_table "$command $word")"
        [ -z "$found" ] || { printf '%s\n' "$found"; return; }
    done
    if [ "$arguments" = 1 ]; then
        found="$(_megabert_table "$command *")"
        [ -z "$found" ] || { printf '%s\n' "$found"; return; }
    fi
    _megabert_table "$command"
}
