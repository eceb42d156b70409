# Completion of megabert VERSION in fish, written by `megabert completion fish`.

function __megabert_table
    switch $argv[1]
    TABLE
    end
end

# Print the words of the first context that has any: the command with one of its words, with any argument, alone.
function __megabert_words
    set -l arguments 0
    for word in $argv[2..]
        string match -q -- '-*' $word; or string match -q -- '*=*' $word; and continue
        set arguments 1
        set -l found (__megabert_table "$argv[1] $word")
        test -n "$found"; and printf '%s\n' $found; and return
    end
    if test $arguments = 1
        set -l found (__megabert_table "$argv[1] *")
        test -n "$found"; and printf '%s\n' $found; and return
    end
    __megabert_table $argv[1]
end

function __megabert_complete
    set -l before (commandline -opc)[2..]
    set -l word (commandline -ct)
    if string match -qr -- '^[^-].*=' $word
        set -l key (string split -m 1 = -- $word)[1]
        set -l value (string split -m 1 = -- $word)[2]
        set -l found (__megabert_table "=$key")
        test -n "$found"; or set found (__fish_complete_path $value)
        printf "$key=%s\n" $found
        return
    end
    set -l candidates
    if test (count $before) = 0
        set candidates (__megabert_table '')
    else
        set candidates (__megabert_words $before)
    end
    string match -q -- '-*' $word; or set candidates (string match -v -- '-*' $candidates)
    set -l matching (string match -- "$word*" $candidates)
    if test -n "$matching"
        printf '%s\n' $matching
    else if test (count $before) -gt 0
        __fish_complete_path $word
    end
end

complete -c megabert -f -a '(__megabert_complete)'
