#!/bin/sh
# Finds the libraries that are bound in from the host, and tells the user where a prompt belongs to.

LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1='Singularity> '
export LD_LIBRARY_PATH PS1
