#compdef megabert
# Completion of megabert VERSION in zsh, written by `megabert completion zsh`.

LOOKUP

_megabert() {
    local word="${words[CURRENT]}"
    local -a before candidates
    before=("${(@)words[2,CURRENT-1]}")
    if [[ "$word" == [^-]*=* ]]; then
        candidates=(${(f)"$(_megabert_table "=${word%%=*}")"})
        compset -P '*='
        if (( ${#candidates} )); then compadd -a candidates; else _files; fi
        return
    fi
    if (( ${#before} == 0 )); then
        candidates=(${(f)"$(_megabert_table '')"})
    else
        candidates=(${(f)"$(_megabert_words "${before[@]}")"})
    fi
    [[ "$word" == -* ]] || candidates=(${candidates:#-*})
    local -a keys others
    keys=(${(M)candidates:#*=}) others=(${candidates:#*=})
    local added=1
    compadd -S '' -a keys && added=0
    compadd -a others && added=0
    (( added && ${#before} )) && _files && added=0
    return added
}

# Read from a folder of $fpath the file is the function's body; else it only defines the function.
if [[ "${funcstack[1]}" == _megabert ]]; then _megabert "$@"; else compdef _megabert megabert; fi
