#!/bin/sh
# Runs what the image is made for, or what one of its SCIF apps is made for.

for singularity_env_file in /.singularity.d/env/*.sh; do
    if [ -f "$singularity_env_file" ]; then
        . "$singularity_env_file"
    fi
done

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    app_runscript="/scif/apps/$SINGULARITY_APPNAME/scif/runscript"
    if [ -x "$app_runscript" ]; then
        exec "$app_runscript" "$@"
    fi
    printf 'This container has no runscript for the app %s\n' "$SINGULARITY_APPNAME"
    exit 1
fi

if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
echo "This container has no runscript, starting /bin/sh"
exec /bin/sh "$@"
