#!/bin/sh
OCI_ENTRYPOINT={oci_entrypoint}
OCI_CMD={oci_cmd}

# Arguments of the user take the place of the image's command, never of its entry point.
if [ -n "$SINGULARITY_NO_EVAL$APPTAINER_NO_EVAL" ]; then
    if [ $# -eq 0 ]; then
        set -- {cmd}
    fi
    set -- {entrypoint} "$@"
else
    CMDLINE_ARGS='"$@"'
    if [ $# -gt 0 ]; then
        SINGULARITY_OCI_RUN="$OCI_ENTRYPOINT $CMDLINE_ARGS"
    else
        SINGULARITY_OCI_RUN="$OCI_ENTRYPOINT $OCI_CMD"
    fi
    eval "set -- $SINGULARITY_OCI_RUN"
fi

if [ $# -eq 0 ]; then
    set -- /bin/sh
fi
exec "$@"
