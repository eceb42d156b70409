# Completion of megabert VERSION in bash, written by `megabert completion bash`.

LOOKUP

_megabert() {
    local line="${COMP_LINE:0:COMP_POINT}" word value IFS=$' \t\n'
    local -a before candidates
    # Words are split at blanks only: bash would split key=value at =, too.
    word="${line##*[[:space:]]}"
    read -r -a before <<< "${line%"$word"}"
    if [[ "$word" == [!-]*=* ]]; then
        value="${word#*=}"
        candidates=($(_megabert_table "=${word%%=*}"))
    else
        value="$word"
        if [ "${#before[@]}" -le 1 ]; then
            candidates=($(_megabert_table ''))
        else
            candidates=($(_megabert_words "${before[@]:1}"))
        fi
    fi
    COMPREPLY=()
    local candidate
    for candidate in "${candidates[@]}"; do
        case "$candidate" in -*) [[ "$value" == -* ]] || continue ;; esac
        [[ "$candidate" != "$value"* ]] || COMPREPLY+=("$candidate")
    done
    if [ "${#COMPREPLY[@]}" -eq 0 ] && [ "${#before[@]}" -gt 1 ]; then
        compopt -o filenames 2> /dev/null
        IFS=$'\n'
        COMPREPLY=($(compgen -f -- "$value"))
    elif [ "${#COMPREPLY[@]}" -eq 1 ] && [[ "${COMPREPLY[0]}" == *= ]]; then
        compopt -o nospace 2> /dev/null
    fi
    # Without = among the characters that split words, readline replaces the whole of key=value.
    if [[ "$word" == [!-]*=* && "$COMP_WORDBREAKS" != *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]/#/${word%%=*}=}")
    fi
}

complete -F _megabert megabert
