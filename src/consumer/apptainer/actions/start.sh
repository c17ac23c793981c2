#!/bin/sh
# Starts the services of an instance.

# Process 1 of the instance stands still until it hears that this script runs: nothing may come before.
kill -CONT 1

for singularity_env_file in /.singularity.d/env/*.sh; do
    if [ -f "$singularity_env_file" ]; then
        . "$singularity_env_file"
    fi
done

if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript
fi
