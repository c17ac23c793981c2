#!/bin/sh
# Runs the tests that the image brings, or those of one of its SCIF apps.

for singularity_env_file in /.singularity.d/env/*.sh; do
    if [ -f "$singularity_env_file" ]; then
        . "$singularity_env_file"
    fi
done

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    app_test="/scif/apps/$SINGULARITY_APPNAME/scif/test"
    if [ -x "$app_test" ]; then
        exec "$app_test" "$@"
    fi
    printf 'This container has no test for the app %s\n' "$SINGULARITY_APPNAME"
    exit 1
fi

if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "This container has no test, running /bin/sh -c true"
exec /bin/sh -c true
