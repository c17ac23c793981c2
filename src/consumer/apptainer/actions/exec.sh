#!/bin/sh
# Runs a command of the user's in the environment of the image.

for singularity_env_file in /.singularity.d/env/*.sh; do
    if [ -f "$singularity_env_file" ]; then
        . "$singularity_env_file"
    fi
done

exec "$@"
