#!/bin/sh
# Starts a shell: the one that the user names, else bash, else sh.

for singularity_env_file in /.singularity.d/env/*.sh; do
    if [ -f "$singularity_env_file" ]; then
        . "$singularity_env_file"
    fi
done

if [ -n "${SINGULARITY_SHELL:-}" ] && [ -x "$SINGULARITY_SHELL" ]; then
    exec "$SINGULARITY_SHELL" "$@"
fi

if [ -x /bin/bash ]; then
    SHELL=/bin/bash
    PS1="Singularity ${SINGULARITY_NAME:-}:\\w> "
    export SHELL PS1
    exec /bin/bash --norc "$@"
fi

if [ -x /bin/sh ]; then
    SHELL=/bin/sh
    export SHELL
    exec /bin/sh "$@"
fi

echo "This container has neither /bin/bash nor /bin/sh" >&2
exit 1
